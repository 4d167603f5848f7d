//! The loop of one session: moves media and messages, and ends everything together.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bus::{Inbound, Subscription};
use contract::error::ClientError;
use contract::event::{Event, SessionEvent, SessionState};
use contract::media::MediaPart;
use contract::session::Control;
use contract::{Error, Incarnation, InstanceId, Reason, SessionId};
use runtime::metric_names;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};
use webrtc::media_stream::track_local::TrackLocal;
use webrtc::peer_connection::RTCPeerConnectionState;

use super::Shared;
use super::channel::{Channel, ChannelEvent};
use super::line::Line;
use super::messages::ServerMessage;
use super::registry::{Command, Place};
use crate::app::App;
use crate::cell::Snapshot;
use crate::media::bitrate::BitrateController;
use crate::media::peer::{Peer, PeerEvent};
use crate::media::reassembly::Reassembly;
use crate::media::rtp::Packetizer;

/// A client that got an answer has this long to connect, and this long to come back after its network went away.
const CONNECT_WAIT: Duration = Duration::from_secs(20);
const RETURN_WAIT: Duration = Duration::from_secs(6);
/// How long a session outlives the broker.
const BROKER_WAIT: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(250);
/// stage0 pauses a session that nobody watches for 10 s.
const VIEWER_INTERVAL: Duration = Duration::from_secs(3);
/// The driver takes packets at once or is gone.
const WRITE_WAIT: Duration = Duration::from_millis(500);
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Why a session ends; the client is told if there is an error.
type Ending = Option<ClientError>;

pub(crate) struct Actor {
    app: App,
    id: SessionId,
    stage0: Option<InstanceId>,
    incarnation: Incarnation,
    shared: Arc<Shared>,
    line: Line,
    peer: Peer,
    packetizer: Packetizer,
    reassembly: Reassembly,
    bitrate: BitrateController,
    media: Subscription,
    events: Subscription,
    /// Given back before `commands` closes, which is what those who ended the session wait for.
    _place: Place,
    commands: mpsc::Receiver<Command>,
    channel: Channel,
    channel_events: mpsc::Receiver<ChannelEvent>,
    cell: watch::Receiver<Snapshot>,
    connected: bool,
    /// The client has to be connected by then.
    patience: Option<Instant>,
    broker_lost: Option<Instant>,
    viewer_told: Option<Instant>,
    lagged: u64,
}

impl Actor {
    #[allow(clippy::too_many_arguments, reason = "the parts of one session, put together in one place")]
    pub(crate) fn new(
        app: App,
        id: SessionId,
        stage0: Option<InstanceId>,
        shared: Arc<Shared>,
        line: Line,
        peer: Peer,
        packetizer: Packetizer,
        media: Subscription,
        events: Subscription,
        commands: mpsc::Receiver<Command>,
        place: Place,
    ) -> Self {
        let now = Instant::now();
        let (channel_tx, channel_events) = mpsc::channel(4);
        let config = &app.config().webrtc;
        let bitrate = BitrateController::new(now, config.start_kbps, config.min_kbps, config.max_kbps);
        Self {
            channel: Channel::new(Arc::clone(&shared), line.clone(), channel_tx),
            cell: app.cell().subscribe(),
            incarnation: Incarnation(1),
            reassembly: Reassembly::new(Incarnation(1)),
            bitrate,
            connected: false,
            patience: Some(now + CONNECT_WAIT),
            broker_lost: None,
            viewer_told: None,
            lagged: 0,
            app,
            id,
            stage0,
            shared,
            line,
            peer,
            packetizer,
            media,
            events,
            commands,
            channel_events,
            _place: place,
        }
    }

    pub(crate) async fn run(mut self) {
        let ending = self.stream().await;
        self.set_connected(false);
        match &ending {
            Some(error) => info!(reason = error.reason.as_str(), "session ends: {}", error.message),
            None => info!("session ends"),
        }
        self.channel.send(&ServerMessage::stopped(ending.as_ref()));
        let reason = ending.map_or_else(|| "the viewer is gone".to_owned(), |error| error.message);
        let close = Control::Close { reason };
        let flush = self.channel.flush();
        let closed = timeout(CLOSE_WAIT, self.line.control(&close));
        let (_, closed) = tokio::join!(flush, closed);
        if let Ok(Err(error)) = closed
            && error.reason != Reason::NoSuchSession
        {
            debug!(%error, "stage0 did not confirm the end; its own time-out will");
        }
        self.app.sessions().remove(self.id);
        if timeout(CLOSE_WAIT, self.peer.connection.close()).await.is_err() {
            warn!("the peer connection did not close in time");
        }
    }

    async fn stream(&mut self) -> Ending {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let ending = tokio::select! {
                biased;
                command = self.commands.recv() => self.on_command(command),
                event = self.peer.events.recv() => self.on_peer(event),
                Some(ChannelEvent::Closed) = self.channel_events.recv() => Some(None),
                changed = self.cell.changed() => match changed {
                    Ok(()) => self.on_cell(),
                    Err(_) => Some(ended(Reason::Draining, "the gateway is stopping")),
                },
                event = self.events.next() => match event {
                    Some(inbound) => self.on_event(&inbound),
                    None => Some(ended(Reason::BrokerUnavailable, "the event stream was closed")),
                },
                () = self.peer.feedback.keyframe_wanted() => {
                    if self.reassembly.receiver_asks(Instant::now()) {
                        self.line.queue(Control::Keyframe);
                    }
                    None
                }
                part = self.media.next() => match part {
                    Some(inbound) => self.on_media(&inbound).await,
                    None => Some(ended(Reason::BrokerUnavailable, "the media stream was closed")),
                },
                _ = tick.tick() => self.on_tick(Instant::now()),
            };
            if let Some(ending) = ending {
                return ending;
            }
        }
    }

    fn on_command(&mut self, command: Option<Command>) -> Option<Ending> {
        match command {
            Some(Command::ParametersUpdated(parameters)) => {
                self.channel.send(&ServerMessage::ParametersUpdated { parameters });
                None
            }
            Some(Command::End(error)) => Some(error.map(|error| error.for_client())),
            None => Some(None),
        }
    }

    fn on_peer(&mut self, event: Option<PeerEvent>) -> Option<Ending> {
        match event {
            Some(PeerEvent::Channel(channel)) => {
                self.channel.adopt(channel);
                None
            }
            Some(PeerEvent::State(state)) => self.on_state(state),
            None => Some(None),
        }
    }

    fn on_state(&mut self, state: RTCPeerConnectionState) -> Option<Ending> {
        debug!(%state, "peer connection");
        match state {
            RTCPeerConnectionState::Connected => {
                self.set_connected(true);
                self.patience = None;
                self.viewer_told = None;
                if self.reassembly.join(Instant::now()) {
                    self.line.queue(Control::Keyframe);
                }
                None
            }
            RTCPeerConnectionState::Disconnected => {
                self.set_connected(false);
                self.patience = Some(Instant::now() + RETURN_WAIT);
                None
            }
            RTCPeerConnectionState::Failed | RTCPeerConnectionState::Closed => Some(None),
            _ => None,
        }
    }

    fn set_connected(&mut self, connected: bool) {
        if self.connected != connected {
            self.connected = connected;
            metrics::gauge!(metric_names::VIEWERS).increment(if connected { 1.0 } else { -1.0 });
        }
    }

    /// Looks whether the stage0 that owns this session still lives.
    fn on_cell(&mut self) -> Option<Ending> {
        let snapshot = self.cell.borrow_and_update().clone();
        match (snapshot.connected, self.broker_lost) {
            (false, None) => self.broker_lost = Some(Instant::now()),
            (true, Some(_)) => self.broker_lost = None,
            _ => {}
        }
        let owner = self.stage0?;
        if snapshot.connected && !snapshot.alive.contains(&owner) {
            return Some(ended(Reason::SessionEnded, "the process that made this stream stopped answering"));
        }
        None
    }

    fn on_event(&mut self, inbound: &Inbound) -> Option<Ending> {
        let message: SessionEvent = match inbound.decode() {
            Ok(message) => message,
            Err(error) => {
                warn!(%error, "an event was not understood");
                return None;
            }
        };
        if message.incarnation < self.incarnation {
            return None;
        }
        self.incarnation = message.incarnation;
        match &message.event {
            Event::State { state: SessionState::Ended, error } => {
                return Some(error.clone().or_else(|| ended(Reason::SessionEnded, "the session ended")));
            }
            Event::State { state, error } => self.shared.set_state(*state, error.clone()),
            Event::Applied { transition_active: false, .. } => self.shared.transition_ended(),
            Event::Chunk(report) => self.shared.set_chunk(report.clone()),
            Event::Applied { .. } | Event::Error { .. } => {}
        }
        self.channel.send(&message.event.into());
        None
    }

    async fn on_media(&mut self, inbound: &Inbound) -> Option<Ending> {
        let part: MediaPart = match inbound.decode() {
            Ok(part) => part,
            Err(error) => {
                warn!(%error, "a media message was not understood");
                return None;
            }
        };
        if !self.connected || part.session != self.id {
            return None;
        }
        let gaps = self.reassembly.gaps();
        let pushed = self.reassembly.push(Instant::now(), part);
        if self.reassembly.gaps() > gaps {
            metrics::counter!(metric_names::MEDIA_GAPS).increment(1);
            self.shared.gaps.store(self.reassembly.gaps(), Ordering::Relaxed);
        }
        self.shared.frames_dropped.store(self.reassembly.dropped(), Ordering::Relaxed);
        if pushed.ask_keyframe {
            self.line.queue(Control::Keyframe);
        }
        let unit = pushed.unit?;
        let bytes = unit.data.len();
        let packets = match self.packetizer.packetize(unit) {
            Ok(packets) => packets,
            Err(error) => return Some(Some(error.for_client())),
        };
        for packet in packets {
            match timeout(WRITE_WAIT, self.peer.track.write_rtp(packet)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    debug!(%error, "the connection takes no packets");
                    return None;
                }
                Err(_) => return Some(ended(Reason::Internal, "the media connection is stuck")),
            }
        }
        self.shared.count_unit(bytes);
        metrics::counter!(metric_names::MEDIA_BYTES).increment(bytes as u64);
        None
    }

    fn on_tick(&mut self, now: Instant) -> Option<Ending> {
        if self.patience.is_some_and(|until| now >= until) {
            debug!("the client did not connect, or did not come back");
            return Some(None);
        }
        if self.broker_lost.is_some_and(|since| now.saturating_duration_since(since) > BROKER_WAIT) {
            return Some(ended(Reason::BrokerUnavailable, "the connection between the services was lost"));
        }
        if self.connected
            && self.viewer_told.is_none_or(|told| now.saturating_duration_since(told) >= VIEWER_INTERVAL)
        {
            self.viewer_told = Some(now);
            self.line.queue(Control::Viewer);
        }
        if let Some(estimate) = self.peer.feedback.estimate()
            && let Some(kbps) = self.bitrate.estimate(now, estimate)
        {
            debug!(kbps, estimate, "bitrate follows the receiver");
            self.line.queue(Control::Bitrate { kbps });
        }
        self.shared.kbps.store(u64::from(self.bitrate.current_kbps()), Ordering::Relaxed);
        let lagged = self.media.lagged();
        if lagged > self.lagged {
            debug!(
                dropped = lagged - self.lagged,
                "media messages came faster than the connection took them"
            );
            metrics::counter!(metric_names::FRAMES_DROPPED, "reason" => "gateway_queue")
                .increment(lagged - self.lagged);
            self.lagged = lagged;
        }
        None
    }
}

fn ended(reason: Reason, message: &str) -> Ending {
    Some(Error::new(reason, message).for_client())
}
