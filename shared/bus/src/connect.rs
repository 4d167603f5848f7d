//! Opening the connection, and the two tasks that watch it.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError, Subscriber};
use contract::{Error, Reason};
use futures_util::StreamExt;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use crate::config::BusConfig;
use crate::link::{Link, Violation};

/// Longest pause between two attempts: well under the leader's TTL and under what counts as absence, so that a live leader is
/// back before it is doubted.
pub(crate) const MAX_RECONNECT_DELAY: Duration = Duration::from_millis(250);
/// A silent broker is given up after three of these.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);
/// Messages between socket and subscription; a forwarding task empties it at once.
const SOCKET_BACKLOG: usize = 1024;
/// Commands waiting for the socket.
const COMMAND_BACKLOG: usize = 256;
/// How long a marker may take before the connection counts as broken.
pub(crate) const MARKER_WAIT: Duration = Duration::from_secs(1);
/// After the marker, the time forwarding tasks get to stamp what came before it. Requests are refused so long, to be asked again.
const STAMP_WAIT: Duration = Duration::from_millis(200);

/// A connected client with the link that watches it.
pub(crate) struct Connected {
    pub(crate) client: Client,
    pub(crate) link: Arc<Link>,
    pub(crate) marker_subject: String,
    /// Ends the tasks that watch the connection, and with them the connection, once nobody uses it.
    _alive: DropGuard,
}

pub(crate) async fn connect(config: &BusConfig, name: &str) -> Result<Connected, Error> {
    let give_up = Instant::now() + Duration::from_millis(config.connect_timeout_ms);
    let link = Arc::new(Link::new());
    let options = options(config, name, Arc::downgrade(&link)).await?;
    let servers = servers(config)?;
    let client = open(&options, &servers, config, give_up).await?;
    link.attach(client.statistics());
    link.tick();
    link.publish_state(true);
    let marker_subject = client.new_inbox();
    let markers = client.subscribe(marker_subject.clone()).await.map_err(|e| {
        Error::new(Reason::BrokerUnavailable, "the connection closed while it was set up")
            .detail(e.to_string())
    })?;
    let end = CancellationToken::new();
    let watched = resolve_markers(markers, Arc::clone(&link));
    tokio::spawn(end.clone().run_until_cancelled_owned(watched));
    let ticked = watch_own_tick(client.clone(), Arc::clone(&link), marker_subject.clone());
    tokio::spawn(end.clone().run_until_cancelled_owned(ticked));
    info!(broker = config.shown_url(), name, "connected to the broker");
    Ok(Connected { client, link, marker_subject, _alive: end.drop_guard() })
}

async fn options(config: &BusConfig, name: &str, link: Weak<Link>) -> Result<ConnectOptions, Error> {
    let mut options = ConnectOptions::new()
        .name(name)
        .ping_interval(PING_INTERVAL)
        .connection_timeout(Duration::from_secs(2))
        .request_timeout(None)
        .subscription_capacity(SOCKET_BACKLOG)
        .client_capacity(COMMAND_BACKLOG)
        .reconnect_delay_callback(|attempt| {
            let doubled = Duration::from_millis(1 << attempt.saturating_sub(1).min(10));
            if attempt <= 1 { Duration::ZERO } else { doubled.min(MAX_RECONNECT_DELAY) }
        })
        .event_callback(move |event| on_event(link.clone(), event));
    if let Some((user, password)) = config.login().await? {
        // Answers go where only this user may listen (`nats/nats-server.conf`).
        options = options
            .custom_inbox_prefix(format!("_INBOX_{user}"))
            .user_and_password(user, password.expose().to_owned());
    }
    if let Some(file) = &config.creds_file {
        options = options
            .credentials_file(file)
            .await
            .map_err(|e| Error::new(Reason::BadField, format!("nats.creds_file {}: {e}", file.display())))?;
    }
    if let Some(file) = &config.tls_ca_file {
        options = options.add_root_certificates(file.clone()).require_tls(true);
    }
    Ok(options)
}

fn servers(config: &BusConfig) -> Result<Vec<ServerAddr>, Error> {
    let parse = |url: &str| {
        url.trim()
            .parse::<ServerAddr>()
            .map_err(|e| Error::new(Reason::BadField, format!("nats.url {:?}: {e}", config.shown_url())))
    };
    config.url.split(',').map(parse).collect()
}

async fn open(
    options: &ConnectOptions,
    servers: &[ServerAddr],
    config: &BusConfig,
    give_up: Instant,
) -> Result<Client, Error> {
    let mut last = "no answer".to_owned();
    loop {
        match timeout_at(give_up.into(), options.clone().connect(servers)).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(e)) if e.kind() == ConnectErrorKind::AuthorizationViolation => {
                let user = config.user.as_deref().unwrap_or("(none)");
                let message = format!("the broker at {} refuses user {user}", config.shown_url());
                return Err(Error::new(Reason::PermissionDenied, message));
            }
            Ok(Err(e)) => last = e.to_string(),
            Err(_) => {}
        }
        if Instant::now() + MAX_RECONNECT_DELAY >= give_up {
            let ms = config.connect_timeout_ms;
            let message = format!("no broker at {} within {ms} ms", config.shown_url());
            return Err(Error::new(Reason::BrokerUnavailable, message).detail(last));
        }
        sleep(MAX_RECONNECT_DELAY).await;
    }
}

async fn on_event(link: Weak<Link>, event: Event) {
    let Some(link) = link.upgrade() else { return };
    match event {
        // The first connection is reported by connect itself, once the link knows its client.
        Event::Connected if link.connects() > 0 => link.publish_state(true),
        Event::Disconnected | Event::Closed => {
            warn!("the broker connection is down");
            link.publish_state(false);
        }
        Event::SlowConsumer(_) => link.count_slow_consumer(),
        Event::ServerError(ServerError::Other(text)) => {
            warn!(text, "the broker reports an error");
            if let Some(violation) = Violation::parse(&text) {
                link.report_violation(violation);
            }
        }
        other => debug!(%other, "broker event"),
    }
}

async fn resolve_markers(mut markers: Subscriber, link: Arc<Link>) {
    while let Some(message) = markers.next().await {
        if let Ok(id) = <[u8; 8]>::try_from(message.payload.as_ref()) {
            link.resolve_marker(u64::from_be_bytes(id), true);
        }
    }
}

/// Sends a marker to ourselves and waits until it is back. The broker keeps the order of one connection, so by then
/// it has processed all that we sent before, and we have read all that it had sent before.
pub(crate) async fn marker(client: &Client, link: &Link, subject: &str, wait: Duration) -> Result<(), Error> {
    let (id, seen) = link.register_marker();
    let round_trip = async {
        client.publish(subject.to_owned(), id.to_be_bytes().to_vec().into()).await.is_ok()
            && seen.await.is_ok()
    };
    let came = timeout(wait, round_trip).await.unwrap_or(false);
    link.resolve_marker(id, false);
    if came {
        return Ok(());
    }
    let message = format!("the broker did not echo a marker within {} ms", wait.as_millis());
    Err(Error::new(Reason::BrokerUnavailable, message)
        .detail("the user needs to publish to and subscribe to its own inbox"))
}

/// Notices that this process did not run for a while (stopped, starved, suspended), and discards what came meanwhile.
/// Events of the client can be lost when there are many, so the state is also read here.
async fn watch_own_tick(client: Client, link: Arc<Link>, marker_subject: String) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let stalled = link.tick_is_late();
        if stalled {
            link.begin_discarding();
        }
        link.tick();
        link.publish_state(client.connection_state() == State::Connected);
        if stalled {
            warn!("this process was stalled: what it received meanwhile is discarded");
            tokio::spawn(discard_backlog(client.clone(), Arc::clone(&link), marker_subject.clone()));
        }
    }
}

async fn discard_backlog(client: Client, link: Arc<Link>, marker_subject: String) {
    let connected = client.connection_state() == State::Connected;
    if connected && marker(&client, &link, &marker_subject, MARKER_WAIT).await.is_err() {
        // A new connection holds nothing old.
        let _ = client.force_reconnect().await;
    }
    sleep(STAMP_WAIT).await;
    link.end_discarding();
    link.publish_state(client.connection_state() == State::Connected);
}
