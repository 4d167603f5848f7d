//! Requests, publications and subscriptions on one connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Client, HeaderMap, Message, Request, RequestErrorKind};
use bytes::Bytes;
use contract::{Deadline, Error, Reason, codec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};
use tokio::time::{timeout, timeout_at};

use crate::config::BusConfig;
use crate::connect::{self, Connected, MARKER_WAIT};
use crate::handle::RawSubscription;
use crate::link::{ConnectionState, Link, Refused, Violation};
use crate::service::{Service, ServiceInfo};
use crate::subscription::Subscription;
use crate::{trace, wire};

/// How long a publication waits for room before it is refused.
const PUBLISH_WAIT: Duration = Duration::from_millis(500);
/// A refusal travels through another task than the marker behind it: so much later it may be seen.
const REFUSAL_WAIT: Duration = Duration::from_millis(20);

/// One connection to the broker; clones share it. Dropping the last one closes it. Media uses a bus of its own, so
/// that a slow viewer never delays control.
#[derive(Clone)]
pub struct Bus(Arc<Connected>);

impl Bus {
    /// Connects as `name` and keeps the connection up from then on, reconnecting in the background.
    ///
    /// # Errors
    /// `broker_unavailable` when there is no connection within the configured time, `permission_denied` when the
    /// broker refuses the account, `bad_field` for settings that cannot be used.
    pub async fn connect(config: &BusConfig, name: &str) -> Result<Self, Error> {
        connect::connect(config, name).await.map(|connected| Self(Arc::new(connected)))
    }

    /// Sends `body` and waits for the answer until `deadline`; what is left of it travels in `Km-Budget-Ms`.
    ///
    /// # Errors
    /// `no_responders`: nobody serves the subject. `budget_spent`: no answer in time. `broker_unavailable`: not sent,
    /// or the connection was lost while waiting (then the outcome is unknown). `permission_denied`: the broker
    /// refuses the subject to this account. Otherwise the error that the other side answered.
    pub async fn request<Q, R>(&self, subject: &str, body: &Q, deadline: Deadline) -> Result<R, Error>
    where
        Q: Serialize,
        R: DeserializeOwned,
    {
        let reply = self.call(subject, codec::encode(body)?.into(), deadline).await?;
        codec::decode(&reply.payload)
    }

    async fn call(&self, subject: &str, payload: Bytes, deadline: Deadline) -> Result<Message, Error> {
        let sent = Instant::now();
        let asked = [subject.to_owned()];
        let spent = || {
            let ms = deadline.left(sent).as_millis();
            Error::new(Reason::BudgetSpent, format!("no answer from {subject} within {ms} ms"))
        };
        if deadline.expired(sent) {
            return Err(Error::new(
                Reason::BudgetSpent,
                format!("the budget was spent before {subject} was asked"),
            ));
        }
        let mut state = self.link().state();
        let mut violations = self.link().violations();
        let connection = self.refuse_while_disconnected(subject)?;
        let headers = wire::request_headers(deadline.left(sent), trace::current_traceparent());
        let request = Request::new().payload(payload).headers(headers).timeout(None);
        let answer = tokio::select! {
            biased;
            answer = timeout_at(deadline.at().into(), self.client().send_request(subject.to_owned(), request)) => answer,
            violation = refusal_of(&mut violations, Refused::Publish, &asked) => return Err(violation.error()),
            () = connection_lost(&mut state, self.link(), connection) => {
                let message = format!("the broker connection was lost while {subject} was asked");
                return Err(Error::new(Reason::BrokerUnavailable, message).detail("the outcome is unknown"));
            }
        };
        let reply = answer.map_err(|_| spent())?.map_err(|e| match e.kind() {
            RequestErrorKind::NoResponders => {
                Error::new(Reason::NoResponders, format!("nobody serves {subject}"))
            }
            RequestErrorKind::TimedOut => spent(),
            RequestErrorKind::MaxPayloadExceeded => Error::new(
                Reason::PayloadTooLarge,
                format!("the broker allows no message of this size on {subject}"),
            ),
            RequestErrorKind::InvalidSubject => bad_subject(subject),
            RequestErrorKind::Other => {
                Error::new(Reason::BrokerUnavailable, "the broker connection is closed").detail(e.to_string())
            }
        })?;
        match wire::error_of(&reply) {
            Some(error) => Err(error),
            None => Ok(reply),
        }
    }

    /// Publishes `body`, MessagePack with named fields. Returns once it is queued for the socket.
    ///
    /// # Errors
    /// `broker_unavailable` while disconnected, `queue_full` when the connection takes nothing for half a second,
    /// `payload_too_large`. A missing permission shows only in the log: the broker tells it later.
    pub async fn publish<T: Serialize>(&self, subject: &str, body: &T) -> Result<(), Error> {
        self.send(subject, codec::encode(body)?.into(), wire::publish_headers()).await
    }

    /// Publishes bytes as they are.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub async fn publish_bytes(&self, subject: &str, payload: Bytes) -> Result<(), Error> {
        if payload.len() > codec::MAX_PAYLOAD {
            let (len, max) = (payload.len(), codec::MAX_PAYLOAD);
            let message = format!("message of {len} bytes on {subject}: {max} are allowed");
            return Err(Error::new(Reason::PayloadTooLarge, message));
        }
        self.send(subject, payload, wire::publish_headers()).await
    }

    pub(crate) async fn send(&self, subject: &str, payload: Bytes, headers: HeaderMap) -> Result<(), Error> {
        self.refuse_while_disconnected(subject)?;
        let queued = self.client().publish_with_headers(subject.to_owned(), headers, payload);
        match timeout(PUBLISH_WAIT, queued).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(match e.kind() {
                async_nats::client::PublishErrorKind::InvalidSubject => bad_subject(subject),
                async_nats::client::PublishErrorKind::MaxPayloadExceeded => Error::new(
                    Reason::PayloadTooLarge,
                    format!("the broker allows no message of this size on {subject}"),
                ),
                _ => Error::new(Reason::BrokerUnavailable, "the broker connection is closed")
                    .detail(e.to_string()),
            }),
            Err(_) => {
                let ms = PUBLISH_WAIT.as_millis();
                Err(Error::new(Reason::QueueFull, format!("the broker connection took nothing for {ms} ms")))
            }
        }
    }

    /// Subscribes to `subject` (wildcards allowed); when this returns the broker knows. At most `capacity` messages
    /// wait; more are dropped and counted by [`Subscription::lagged`]. It survives reconnects.
    ///
    /// # Errors
    /// `permission_denied`, `broker_unavailable`, `bad_field` for something that is no subject.
    pub async fn subscribe(&self, subject: &str, capacity: usize) -> Result<Subscription, Error> {
        let raw = self.subscribe_raw(subject).await?;
        Ok(Subscription::start(raw, Arc::clone(&self.0.link), capacity))
    }

    pub(crate) async fn subscribe_raw(&self, subject: &str) -> Result<RawSubscription, Error> {
        let mut one = self.subscribe_each(&[subject.to_owned()]).await?;
        one.pop().ok_or_else(|| bad_subject(subject))
    }

    /// One subscription for each subject, in order, in one round trip.
    pub(crate) async fn subscribe_each(&self, subjects: &[String]) -> Result<Vec<RawSubscription>, Error> {
        let mut refusals = self.link().violations();
        let mut raws = Vec::with_capacity(subjects.len());
        for subject in subjects {
            self.refuse_while_disconnected(subject)?;
            let violations = self.link().violations();
            let subscribed = timeout(PUBLISH_WAIT, self.client().subscribe(subject.clone())).await;
            let subscriber = subscribed
                .map_err(|_| Error::new(Reason::QueueFull, "the broker connection takes nothing"))?
                .map_err(|e| bad_subject(subject).detail(e.to_string()))?;
            raws.push(RawSubscription::new(subscriber, subject, violations));
        }
        self.marker().await?;
        let refused = refusal_of(&mut refusals, Refused::Subscribe, subjects);
        match timeout(REFUSAL_WAIT, refused).await {
            Ok(violation) => Err(violation.error()),
            Err(_) => Ok(raws),
        }
    }

    /// Waits until the broker has processed everything that this bus sent before.
    pub(crate) async fn marker(&self) -> Result<(), Error> {
        connect::marker(self.client(), self.link(), &self.0.marker_subject, MARKER_WAIT).await
    }

    /// Whether the connection is up, and its generation; changes are seen at once.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.link().state()
    }

    /// Messages dropped between socket and subscriptions because this process read too slowly (an underestimate: the
    /// client tells only some of them).
    #[must_use]
    pub fn slow_consumer_events(&self) -> u64 {
        self.link().slow_consumer_events()
    }

    /// Registers a service that anyone can discover (ADR-32); its endpoints are added with [`Service::serve`].
    ///
    /// # Errors
    /// `bad_field` for a name or version that ADR-32 does not allow; otherwise as [`Self::subscribe`].
    pub async fn service(&self, info: ServiceInfo) -> Result<Service, Error> {
        Service::start(self.clone(), info).await
    }

    /// The broker's JetStream API on this connection. Give each call a deadline of your own.
    #[must_use]
    pub fn jetstream(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.client().clone())
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(crate) fn link(&self) -> &Link {
        &self.0.link
    }

    /// The number of the connection in use.
    fn refuse_while_disconnected(&self, subject: &str) -> Result<u64, Error> {
        let connection = self.link().connects();
        if self.client().connection_state() == State::Connected {
            return Ok(connection);
        }
        let message = format!("the broker connection is down: nothing was sent to {subject}");
        Err(Error::new(Reason::BrokerUnavailable, message))
    }
}

fn bad_subject(subject: &str) -> Error {
    Error::new(Reason::BadField, format!("{subject:?} is not a NATS subject"))
}

/// Resolves when the broker refuses us to do `what` on one of `subjects`; never otherwise.
pub(crate) async fn refusal_of(
    violations: &mut broadcast::Receiver<Violation>,
    what: Refused,
    subjects: &[String],
) -> Violation {
    loop {
        match violations.recv().await {
            Ok(v) if v.refused == what && subjects.contains(&v.subject) => return v,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Resolves when connection number `connection` is no longer the one in use.
async fn connection_lost(state: &mut watch::Receiver<ConnectionState>, link: &Link, connection: u64) {
    // The closed case cannot happen while `link` is borrowed; it would mean the same.
    let _ = state.wait_for(|state| !state.is_connected() || link.connects() != connection).await;
}
