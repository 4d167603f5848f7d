//! Watches the executor from outside: aborts its collective on demand, and when the deadline of what runs has passed.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use collectives::Collective;

/// How often the monitor looks whether its engine still exists.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) struct Monitor {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    collective: Option<Arc<dyn Collective>>,
    /// Deadline of what runs.
    deadline: Option<Instant>,
    /// Asked for while no collective could be aborted: the next one is, at once.
    pending: Option<String>,
    loading: bool,
}

impl Monitor {
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let monitor = Arc::new(Self { state: Mutex::default(), changed: Condvar::new() });
        let weak = Arc::downgrade(&monitor);
        thread::Builder::new().name("km-monitor".to_owned()).spawn(move || watch(&weak))?;
        Ok(monitor)
    }

    /// A new epoch begins: aborts asked for from here on are meant for it.
    pub(crate) fn begin_load(&self) {
        let mut state = self.lock();
        state.collective = None;
        state.pending = None;
        state.loading = true;
    }

    /// The collective of the epoch. Aborted at once if that was asked for while its ranks met.
    pub(crate) fn adopt(&self, collective: Arc<dyn Collective>) {
        let mut state = self.lock();
        if let Some(reason) = state.pending.take() {
            collective.abort(&reason);
        }
        state.loading = false;
        state.collective = Some(collective);
    }

    pub(crate) fn arm(&self, deadline: Instant) {
        self.lock().deadline = Some(deadline);
        self.changed.notify_one();
    }

    pub(crate) fn disarm(&self) {
        self.lock().deadline = None;
    }

    pub(crate) fn abort(&self, reason: &str) {
        let mut state = self.lock();
        match &state.collective {
            Some(collective) => collective.abort(reason),
            None if state.loading => state.pending = Some(reason.to_owned()),
            None => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn watch(monitor: &Weak<Monitor>) {
    while let Some(monitor) = monitor.upgrade() {
        let mut state = monitor.lock();
        let now = Instant::now();
        if state.deadline.is_some_and(|deadline| now >= deadline) {
            state.deadline = None;
            if let Some(collective) = &state.collective {
                collective.abort("the call's deadline passed");
            }
        }
        let wait = state.deadline.map_or(LOOK, |deadline| deadline.saturating_duration_since(now).min(LOOK));
        drop(monitor.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner));
    }
}
