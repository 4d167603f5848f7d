//! What the driver last showed of this rank: read by the liveness thread, status and health, which never wait for it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use contract::tp::{Assignment, Beat};
use contract::{InstanceId, MeshEpoch};
use mesh::Activity;
use mesh::worker::View;

pub(crate) struct Board {
    instance: InstanceId,
    shown: Mutex<Shown>,
}

#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) view: View,
    pub(crate) activity: Activity,
}

impl Board {
    pub(crate) fn new(instance: InstanceId, view: View) -> Self {
        Self { instance, shown: Mutex::new(Shown { view, activity: Activity::default() }) }
    }

    pub(crate) fn instance(&self) -> InstanceId {
        self.instance
    }

    pub(crate) fn show(&self, view: View) {
        let mut shown = self.lock();
        if shown.view.epoch != view.epoch {
            shown.activity.epoch_over();
        }
        shown.view = view;
    }

    pub(crate) fn note(&self, note: impl FnOnce(&mut Activity)) {
        note(&mut self.lock().activity);
    }

    pub(crate) fn shown(&self) -> Shown {
        self.lock().clone()
    }

    pub(crate) fn epoch(&self) -> Option<MeshEpoch> {
        self.lock().view.epoch
    }

    /// This rank's beat in the epoch of `assignment`; once that is over, its last one says why.
    pub(crate) fn beat(&self, assignment: &Assignment, now: Instant) -> Beat {
        let view = self.lock().view.clone();
        let over = view.epoch != Some(assignment.mesh_epoch);
        let busy = view.busy_since.map(|since| now.saturating_duration_since(since).as_millis());
        Beat {
            mesh_epoch: assignment.mesh_epoch,
            rank: assignment.rank,
            instance: self.instance,
            phase: view.phase,
            busy_ms: busy.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
            leaving: view.draining,
            fault: over.then(|| view.last_fault.unwrap_or_else(|| "left the epoch".to_owned())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
