//! The sessions of this process: admission, their endpoints, and their end.

mod endpoints;
mod live;
mod lives;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bus::continuations::Continuations;
use bus::{Bus, ConnectionState, Service};
use contract::CONTRACT_VERSION;
use contract::error::{Error, Reason};
use contract::event::{ChunkTimings, SessionEvent};
use contract::ids::{SessionId, SessionSlot};
use contract::model::ModelInfo;
use contract::ops::SessionReport;
use contract::session::{CreateSession, SessionCreated};
use runtime::metric_names;
use tokio::sync::{OnceCell, mpsc, watch};
use tracing::info;

use crate::config::Stage0Section;
use crate::mailbox::Ending;
use crate::mesh_client::MeshHandle;
use crate::studio::Studio;
use live::Live;
use lives::Life;

/// A session that nobody watches, or that is superseded, ends at once; a gateway waits 5 s for its answer.
const ROOM_WAIT: Duration = Duration::from_secs(2);

/// What sessions are made with.
pub(crate) struct Making {
    pub config: Stage0Section,
    pub threads: i32,
    pub model: ModelInfo,
    pub studio: Studio,
    pub mesh: MeshHandle,
    pub control: Bus,
    /// A connection of its own: a slow viewer never delays control.
    pub media: Bus,
    pub service: Service,
}

struct State {
    live: HashMap<SessionId, Live>,
    /// Why no session is taken any more.
    closed: Option<Error>,
    /// Dropped when closed, so that the publisher ends once the last session has.
    events: Option<mpsc::Sender<SessionEvent>>,
}

/// Clones are the same sessions.
#[derive(Clone)]
pub(crate) struct Sessions(Arc<Inner>);

struct Inner {
    making: Making,
    continuations: OnceCell<Continuations>,
    /// Sessions are created one after another: a request that comes twice finds what the first one made.
    creating: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    count: watch::Sender<usize>,
}

impl Sessions {
    pub(crate) fn new(making: Making, events: mpsc::Sender<SessionEvent>) -> Self {
        let state = State { live: HashMap::new(), closed: None, events: Some(events) };
        Self(Arc::new(Inner {
            making,
            continuations: OnceCell::new(),
            creating: tokio::sync::Mutex::default(),
            state: Mutex::new(state),
            count: watch::Sender::new(0),
        }))
    }

    /// Tells every session when the broker goes and comes back, for as long as the connection is used.
    pub(crate) async fn follow(self, mut broker: watch::Receiver<ConnectionState>) {
        while broker.changed().await.is_ok() {
            let (hears, now) = (broker.borrow_and_update().is_connected(), Instant::now());
            self.lock().live.values().for_each(|live| live.mailbox.can_hear(hears, now));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sessions at a time: what is configured, or what the mesh has slots for.
    pub(crate) fn capacity(&self) -> u32 {
        let configured = self.0.making.config.max_sessions;
        match self.0.making.mesh.view().session_slots {
            0 => configured,
            slots => configured.min(slots),
        }
    }

    pub(crate) fn model(&self) -> &ModelInfo {
        &self.0.making.model
    }

    pub(crate) fn mesh(&self) -> &MeshHandle {
        &self.0.making.mesh
    }

    pub(crate) fn reports(&self) -> Vec<SessionReport> {
        let mut reports: Vec<_> = self.lock().live.values().map(|live| live.shown.report()).collect();
        reports.sort_by_key(|report| report.session);
        reports
    }

    /// Timings of the chunk that was sent last, and the frame rate, of any session.
    pub(crate) fn last_chunk(&self) -> Option<(ChunkTimings, f32)> {
        self.lock().live.values().find_map(|live| Some((live.shown.timings()?, live.shown.report().fps)))
    }

    /// Creates a session and starts it. The request that made a session gets the same answer again for as long as it runs.
    ///
    /// # Errors
    /// What is wrong with the request, or why no session can be had now. Nothing was started then.
    pub(crate) async fn create(&self, request: CreateSession) -> Result<SessionCreated, Error> {
        let session = request.session;
        let _turn = self.0.creating.lock().await;
        if let Ok(Some(created)) = self.with(session, |live| live.made_by(&request)) {
            return Ok(created);
        }
        let created = self.try_create(request).await;
        match &created {
            Ok(created) => info!(%session, size = %created.size, "session created"),
            Err(error) => {
                info!(%session, %error, "session refused");
                metrics::counter!(metric_names::SESSIONS_REFUSED, "reason" => error.reason.as_str())
                    .increment(1);
            }
        }
        created
    }

    async fn try_create(&self, request: CreateSession) -> Result<SessionCreated, Error> {
        if request.version != CONTRACT_VERSION {
            let text =
                format!("session request version {}: {CONTRACT_VERSION} is spoken here", request.version);
            return Err(Error::new(Reason::UnsupportedVersion, text));
        }
        request.parameters.validate()?;
        if let Some(closed) = &self.lock().closed {
            return Err(closed.clone());
        }
        let model = &self.0.making.model;
        model.check_parameters(&request.parameters)?;
        let no_size = || Error::new(Reason::UnsupportedSize, "this cell serves no size");
        request.size.map_or(Ok(()), |size| model.check_size(size))?;
        if let Some(what) = self.0.making.mesh.view().waiting_for {
            return Err(Error::new(Reason::NotReady, format!("the cell waits for {what}")));
        }
        self.supersede(&request).await?;
        self.make_room().await;
        // Before anything is put on record; what is found free is taken below.
        self.free_slot(&self.lock())?;
        let session = request.session;
        let life = self.begin(&request).await?;
        let size = request.size.or_else(|| life.size(model)).or(model.default_size()).ok_or_else(no_size)?;
        let created = SessionCreated { session, incarnation: life.incarnation, size };
        let ended = self.admit(request, life, created.clone())?;
        let sessions = self.clone();
        tokio::spawn(async move {
            let _ = ended.await;
            sessions.remove(session);
        });
        if let Err(error) = endpoints::serve(self, session).await {
            self.end(session, Ending::Process(error.clone()));
            return Err(error);
        }
        Ok(created)
    }

    /// If every slot is taken, ends a session that nobody watches: a gateway that died leaves such behind, and whoever
    /// watched comes back through a new one.
    async fn make_room(&self) {
        let (capacity, now) = (self.capacity(), Instant::now());
        let full = |count: usize| count >= usize::try_from(capacity).unwrap_or(usize::MAX);
        let unwatched = {
            let state = self.lock();
            let found = state.live.iter().find(|(_, live)| live.mailbox.is_unwatched(now));
            found.filter(|_| full(state.live.len())).map(|(session, _)| *session)
        };
        if let Some(session) = unwatched {
            self.end(session, Ending::NobodyWatches);
            self.gone(session).await;
        }
    }

    fn runs(&self, session: SessionId) -> bool {
        self.lock().live.contains_key(&session)
    }

    /// Until a session that was told to end has, at most for [`ROOM_WAIT`].
    async fn gone(&self, session: SessionId) {
        let mut count = self.0.count.subscribe();
        let gone = async {
            // Not `wait_for`: its closure would take the two locks in the other order than `remove` does.
            while self.runs(session) && count.changed().await.is_ok() {}
        };
        let _ = tokio::time::timeout(ROOM_WAIT, gone).await;
    }

    /// # Errors
    /// `too_many_sessions`.
    fn free_slot(&self, state: &State) -> Result<SessionSlot, Error> {
        let capacity = self.capacity();
        let taken = |slot: &SessionSlot| state.live.values().any(|live| live.slot == *slot);
        (0..capacity).map(SessionSlot).find(|slot| !taken(slot)).ok_or_else(|| {
            let text = format!("{capacity} sessions run, which is all this cell takes");
            Error::new(Reason::TooManySessions, text)
        })
    }

    /// Takes a slot and starts the session, or says why not.
    fn admit(
        &self,
        request: CreateSession,
        life: Life,
        created: SessionCreated,
    ) -> Result<tokio::sync::oneshot::Receiver<()>, Error> {
        let mut state = self.lock();
        if let Some(closed) = &state.closed {
            return Err(closed.clone());
        }
        let slot = self.free_slot(&state)?;
        let events = state.events.clone().ok_or_else(|| Error::new(Reason::Draining, "stage0 stops"))?;
        let session = request.session;
        let (live, ended) = live::start(&self.0.making, request, life, created, slot, events)?;
        state.live.insert(session, live);
        self.count(&state);
        Ok(ended)
    }

    fn count(&self, state: &State) {
        let count = state.live.len();
        metrics::gauge!(metric_names::SESSIONS).set(count as f64);
        self.0.count.send_replace(count);
    }

    fn remove(&self, session: SessionId) {
        let mut state = self.lock();
        // The endpoints end when dropped.
        let _gone = state.live.remove(&session);
        self.count(&state);
    }

    /// # Errors
    /// `no_such_session`.
    fn with<R>(&self, session: SessionId, act: impl FnOnce(&mut Live) -> R) -> Result<R, Error> {
        let mut state = self.lock();
        let live = state.live.get_mut(&session);
        live.map(act)
            .ok_or_else(|| Error::new(Reason::NoSuchSession, format!("no session {session} runs here")))
    }

    fn end(&self, session: SessionId, ending: Ending) {
        let _ = self.with(session, |live| live.mailbox.end(ending));
    }

    /// Restarts the history of one session, or of all. Returns whose.
    ///
    /// # Errors
    /// `no_such_session`.
    pub(crate) fn reset(&self, session: Option<SessionId>) -> Result<Vec<SessionId>, Error> {
        if let Some(session) = session {
            self.with(session, |live| live.mailbox.reset(Instant::now()))?;
            return Ok(vec![session]);
        }
        let state = self.lock();
        state.live.values().for_each(|live| live.mailbox.reset(Instant::now()));
        Ok(state.live.keys().copied().collect())
    }

    /// Takes no more sessions and ends those that run, each with `error` as its last event. Returns whose.
    pub(crate) fn close(&self, error: &Error) -> Vec<SessionId> {
        self.close_with(error, &Ending::Process(error.clone()))
    }

    /// Takes no more sessions, and leaves those that run to whoever goes on with them. Returns whose.
    pub(crate) fn hand_over(&self, error: &Error) -> Vec<SessionId> {
        self.close_with(error, &Ending::HandOver(error.clone()))
    }

    fn close_with(&self, error: &Error, ending: &Ending) -> Vec<SessionId> {
        let mut state = self.lock();
        state.closed.get_or_insert_with(|| error.clone());
        state.events = None;
        state.live.values().for_each(|live| live.mailbox.end(ending.clone()));
        state.live.keys().copied().collect()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// Until no session runs, at most for `limit`.
    pub(crate) async fn none_left(&self, limit: Duration) {
        let mut count = self.0.count.subscribe();
        let _ = tokio::time::timeout(limit, count.wait_for(|count| *count == 0)).await;
    }
}
