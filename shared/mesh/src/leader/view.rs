use std::time::Instant;

use contract::envelope::MeshPhase;
use contract::{CallId, InstanceId, LeaseEpoch, MeshEpoch};

use super::Leader;

/// What status, beats and health say about the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub phase: MeshPhase,
    pub epoch: Option<MeshEpoch>,
    pub lease: Option<LeaseEpoch>,
    /// The controller whose lease that is.
    pub lease_holder: Option<InstanceId>,
    pub running: Option<CallId>,
    /// The highest call id seen under the lease.
    pub last_call: Option<CallId>,
    pub busy_since: Option<Instant>,
    pub draining: bool,
    /// What a mesh that is not ready waits for.
    pub waiting_for: Option<String>,
    pub last_fault: Option<String>,
}

impl Leader {
    #[must_use]
    pub fn view(&self, now: Instant) -> View {
        let lease = self.lease.in_force(now);
        View {
            phase: self.phase,
            epoch: self.epoch.as_ref().map(|formation| formation.epoch),
            lease: lease.map(|lease| lease.epoch),
            lease_holder: lease.map(|lease| lease.controller),
            running: self.running_call(),
            last_call: self.lease.last_call(),
            busy_since: self.run.as_ref().map(|run| run.started),
            draining: self.draining.is_some(),
            waiting_for: self.waiting_for(),
            last_fault: self.last_fault.clone(),
        }
    }

    pub(super) fn running_call(&self) -> Option<CallId> {
        self.run.as_ref().and_then(|run| run.call_id())
    }

    pub(super) fn waiting_for(&self) -> Option<String> {
        match self.phase {
            MeshPhase::Ready | MeshPhase::Busy => None,
            MeshPhase::Forming if self.epoch.is_none() => Some("leader key".to_owned()),
            MeshPhase::Forming => {
                let wanted = self.config.world_size.get() - 1;
                Some(format!("workers {}/{wanted}", self.members.waiting()))
            }
            MeshPhase::Loading => Some("loading".to_owned()),
            MeshPhase::Warming => Some(format!("warming {}/{}", self.warmed, self.config.warm_up_chunks)),
            MeshPhase::Faulted => Some("recovering".to_owned()),
            MeshPhase::Draining => Some("draining".to_owned()),
            MeshPhase::Stopped => Some("stopped".to_owned()),
        }
    }
}
