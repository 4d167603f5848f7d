//! What sessions tell their gateway, in order, through one bounded queue.

use bus::Bus;
use contract::error::Error;
use contract::event::{Event, SessionEvent, SessionState};
use contract::ids::{Incarnation, SessionId};
use contract::subjects;
use tokio::sync::mpsc;
use tracing::warn;

/// Events that wait for the broker; more are dropped and logged.
const WAITING: usize = 256;

pub(crate) type Queue = mpsc::Receiver<SessionEvent>;

/// Tells about one session.
#[derive(Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<SessionEvent>,
    session: SessionId,
    incarnation: Incarnation,
}

pub(crate) fn queue() -> (mpsc::Sender<SessionEvent>, Queue) {
    mpsc::channel(WAITING)
}

impl Events {
    pub(crate) fn new(
        queue: mpsc::Sender<SessionEvent>,
        session: SessionId,
        incarnation: Incarnation,
    ) -> Self {
        Self { queue, session, incarnation }
    }

    /// Never waits.
    pub(crate) fn send(&self, event: Event) {
        let event = SessionEvent { session: self.session, incarnation: self.incarnation, event };
        if self.queue.try_send(event).is_err() {
            warn!(session = %self.session, "an event was dropped: {WAITING} wait already, or the process stops");
        }
    }

    pub(crate) fn state(&self, state: SessionState, error: Option<&Error>) {
        self.send(Event::State { state, error: error.map(Error::for_client) });
    }

    pub(crate) fn error(&self, error: &Error) {
        self.send(Event::Error { error: error.for_client() });
    }
}

/// Publishes until every [`Events`] and the queue's first sender are gone.
pub(crate) async fn publish(bus: Bus, mut queue: Queue) {
    while let Some(event) = queue.recv().await {
        let subject = subjects::session_event(event.session);
        if let Err(error) = bus.publish(&subject, &event).await {
            warn!(session = %event.session, %error, "an event could not be published");
        }
    }
}
