//! Writes a session's state behind its chunk loop: the newest wins, and the loop never waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::Bus;
use bus::continuations::Tenure;
use contract::continuation::{ContinuationV1, LIFETIME_S};
use contract::error::{Error, Reason};
use contract::{Budget, Deadline};
use runtime::metric_names;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, warn};

/// One state is written within this, or given up for the next one.
const WRITE: Budget = Budget::from_secs(2);
/// A session that makes nothing, because it is paused, keeps its state from expiring.
const REFRESH: Duration = Duration::from_secs(LIFETIME_S / 4);

enum Wish {
    Nothing,
    Keep(Arc<ContinuationV1>),
    /// The session has ended: nobody goes on from here.
    Forget,
}

/// The chunk loop's end. Dropped without [`forget`](Self::forget) it leaves the state to whoever goes on.
pub(crate) struct Keeper(watch::Sender<Wish>);

impl Keeper {
    /// `superseded` is told once a later life of the session has begun.
    pub(crate) fn start(bus: Bus, tenure: Tenure, superseded: impl FnOnce(Error) + Send + 'static) -> Self {
        let (wishes, newest) = watch::channel(Wish::Nothing);
        tokio::spawn(async move {
            if let Err(error) = write(bus, tenure, newest).await {
                superseded(error);
            }
        });
        Self(wishes)
    }

    /// Without a place to keep anything in.
    pub(crate) fn without_place() -> Self {
        Self(watch::Sender::new(Wish::Nothing))
    }

    pub(crate) fn keep(&self, state: ContinuationV1) {
        self.0.send_replace(Wish::Keep(Arc::new(state)));
    }

    pub(crate) fn forget(self) {
        self.0.send_replace(Wish::Forget);
    }
}

/// # Errors
/// `fenced`. Whatever else goes wrong is made up for by the next state.
async fn write(bus: Bus, mut tenure: Tenure, mut wishes: watch::Receiver<Wish>) -> Result<(), Error> {
    loop {
        tokio::select! {
            changed = wishes.changed() => if changed.is_err() {
                return Ok(());
            },
            () = sleep(REFRESH) => {}
        }
        let state = match &*wishes.borrow_and_update() {
            Wish::Nothing => continue,
            // Encoded below: the chunk loop must not wait for the lock.
            Wish::Keep(state) => Some(Arc::clone(state)),
            Wish::Forget => None,
        };
        if !bus.state().borrow().is_connected() {
            debug!("no broker: this state is not kept");
            continue;
        }
        let deadline = Deadline::after(Instant::now(), WRITE);
        let Some(state) = state else {
            if let Err(error) = tenure.end(deadline).await {
                debug!(%error, "the ended session's state stays until it expires");
            }
            return Ok(());
        };
        let saved = match state.encode() {
            Ok(state) => tenure.save(&state, deadline).await,
            Err(error) => Err(error),
        };
        let outcome = saved.as_ref().map_or_else(|error| error.reason.as_str(), |()| "kept");
        metrics::counter!(metric_names::STATES, "outcome" => outcome).increment(1);
        match saved {
            Err(error) if error.reason == Reason::Fenced => return Err(error),
            Err(error) => warn!(%error, detail = error.detail, "a state was not kept"),
            Ok(()) => {}
        }
    }
}
