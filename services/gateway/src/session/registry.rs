//! The sessions that run, and how many may.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::params::Parameters;
use contract::{Digest, Error, Reason, SessionId};
use runtime::metric_names;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use webrtc::peer_connection::PeerConnection;

use super::Shared;
use super::line::Line;

/// How long ending one session may take: last message, close to stage0, peer connection.
pub(crate) const END_WAIT: Duration = Duration::from_secs(3);
pub(crate) const COMMAND_BACKLOG: usize = 16;

/// What the rest of the gateway tells a session.
#[derive(Debug)]
pub(crate) enum Command {
    /// Someone changed parameters over HTTP; the client should know.
    ParametersUpdated(Box<Parameters>),
    /// Ends the session; the error is told to the client.
    End(Option<Error>),
    /// Its client goes on with the session in another connection.
    LetGo,
}

/// One running session as others see it.
pub(crate) struct Handle {
    pub(crate) id: SessionId,
    /// Digest of the session's resume token.
    pub(crate) resume: Digest,
    pub(crate) shared: Arc<Shared>,
    pub(crate) line: Line,
    pub(crate) connection: Arc<dyn PeerConnection>,
    pub(crate) commands: mpsc::Sender<Command>,
}

impl Handle {
    /// Asks the session to end and waits, for a bounded time, until it has.
    pub(crate) async fn end(&self, error: Option<Error>) {
        self.command(Command::End(error)).await;
    }

    /// As [`Self::end`], but the session at stage0 stays.
    pub(crate) async fn let_go(&self) {
        self.command(Command::LetGo).await;
    }

    async fn command(&self, command: Command) {
        let end = async {
            let _ = self.commands.send(command).await;
            self.commands.closed().await;
        };
        let _ = timeout(END_WAIT, end).await;
    }
}

/// A place in the gateway, held from before stage0 is asked until the session has ended.
#[derive(Debug)]
pub(crate) struct Place(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

pub(crate) struct Sessions {
    running: Mutex<BTreeMap<SessionId, Arc<Handle>>>,
    places: Arc<Semaphore>,
    limit: usize,
}

impl Sessions {
    pub(crate) fn new(limit: usize) -> Self {
        Self { running: Mutex::default(), places: Arc::new(Semaphore::new(limit)), limit }
    }

    /// # Errors
    /// `too_many_sessions`; `draining` once the gateway is leaving.
    pub(crate) fn reserve(&self) -> Result<Place, Error> {
        if self.places.is_closed() {
            return Err(draining());
        }
        Arc::clone(&self.places).try_acquire_owned().map(Place).map_err(|_| {
            Error::new(
                Reason::TooManySessions,
                format!("all {} sessions of this gateway are in use", self.limit),
            )
        })
    }

    /// # Errors
    /// `draining`: it would not be ended with the others.
    pub(crate) fn insert(&self, handle: Arc<Handle>) -> Result<(), Error> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Closed before those that run are looked up, under this lock.
        if self.places.is_closed() {
            return Err(draining());
        }
        running.insert(handle.id, handle);
        metrics::gauge!(metric_names::SESSIONS).set(running.len() as f64);
        Ok(())
    }

    pub(crate) fn remove(&self, id: SessionId) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(&id);
        metrics::gauge!(metric_names::SESSIONS).set(running.len() as f64);
    }

    /// # Errors
    /// `no_such_session`.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Handle>, Error> {
        let missing = || Error::new(Reason::NoSuchSession, format!("Session {id} not found"));
        let id = id.parse::<SessionId>().map_err(|_| missing())?;
        self.find(id).ok_or_else(missing)
    }

    pub(crate) fn find(&self, id: SessionId) -> Option<Arc<Handle>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Handle>> {
        let mut all: Vec<_> =
            self.running.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_by_key(|handle| handle.shared.started);
        all
    }

    /// Takes no new session and ends those that run, telling their clients why.
    pub(crate) async fn drain(&self) {
        self.places.close();
        let error = Error::new(Reason::Draining, "the server is shutting down");
        let ends = self.all().into_iter().map(|handle| {
            let error = error.clone();
            async move { handle.end(Some(error)).await }
        });
        futures_util::future::join_all(ends).await;
    }
}

fn draining() -> Error {
    Error::new(Reason::Draining, "the gateway is stopping")
}
