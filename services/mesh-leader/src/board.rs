//! What the driver last showed of the mesh: read by liveness threads, status and health, which never wait for it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use contract::envelope::MeshPhase;
use contract::tp::Beat;
use contract::{InstanceId, MeshEpoch, Rank};
use mesh::Activity;
use mesh::leader::View;

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

    /// The leader's beat to a worker of `epoch`. For an epoch that is over it says so.
    pub(crate) fn beat(&self, epoch: MeshEpoch, now: Instant) -> Beat {
        let view = self.lock().view.clone();
        let over = view.epoch != Some(epoch);
        let busy = view.busy_since.map(|since| now.saturating_duration_since(since).as_millis());
        Beat {
            mesh_epoch: epoch,
            rank: Rank::LEADER,
            instance: self.instance,
            phase: if over { MeshPhase::Faulted } else { view.phase },
            busy_ms: busy.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
            leaving: view.draining,
            fault: if over { view.last_fault } else { None },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
