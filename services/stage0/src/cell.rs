//! What the processes of the cell say of themselves.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bus::{Bus, Census, Subscription};
use contract::CONTRACT_VERSION;
use contract::envelope::MeshPhase;
use contract::error::Error;
use contract::ids::{CellId, InstanceId, MeshEpoch};
use contract::ops::CellReport;
use contract::status::{ProcessStatus, Role};
use contract::subjects;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Status messages that may wait.
const BACKLOG: usize = 256;

/// The leader as its last status shows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LeaderView {
    pub epoch: Option<MeshEpoch>,
    pub phase: MeshPhase,
    pub waiting_for: Option<String>,
    /// When this was heard.
    pub at: Instant,
}

impl LeaderView {
    pub(crate) fn takes_calls(&self) -> bool {
        matches!(self.phase, MeshPhase::Ready | MeshPhase::Busy)
    }
}

/// Clones share what was heard.
#[derive(Clone)]
pub(crate) struct Cell(Arc<Mutex<Census>>);

impl Cell {
    fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Census::new(now))))
    }

    /// Listens until `stop`.
    ///
    /// # Errors
    /// The broker refuses the subscription or is away.
    pub(crate) async fn listen(bus: &Bus, cell: &CellId, stop: CancellationToken) -> Result<Self, Error> {
        let subscription = bus.subscribe(&subjects::cell_status(cell), BACKLOG).await?;
        let heard = Self::new(Instant::now());
        tokio::spawn(stop.run_until_cancelled_owned(heard.clone().receive(subscription)));
        Ok(heard)
    }

    async fn receive(self, mut subscription: Subscription) {
        while let Some(message) = subscription.next().await {
            match message.decode::<ProcessStatus>() {
                Ok(status) if status.version == CONTRACT_VERSION => self.hear(message.received, status),
                Ok(status) => {
                    warn!(version = status.version, "a status of another contract version is ignored")
                }
                Err(error) => warn!(%error, "a status message is ignored"),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Census> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn hear(&self, now: Instant, status: ProcessStatus) {
        self.lock().hear(now, status);
    }

    /// What is known of the cell, as this stage0 tells it.
    pub(crate) fn report(&self, now: Instant, cell: &CellId, instance: InstanceId) -> CellReport {
        self.lock().report(now, cell, (Role::Stage0, instance))
    }

    /// The leader of the newest epoch heard lately.
    pub(crate) fn leader(&self, now: Instant) -> Option<LeaderView> {
        let census = self.lock();
        let leaders = census.live(now).filter(|(status, _)| status.role == Role::MeshLeader);
        let mesh = leaders.filter_map(|(status, at)| Some((status.mesh.as_ref()?, status, at)));
        mesh.max_by_key(|(mesh, ..)| mesh.epoch).map(|(mesh, status, at)| LeaderView {
            epoch: mesh.epoch,
            phase: mesh.phase,
            waiting_for: status.waiting_for.clone(),
            at,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use contract::ids::{Rank, WorldSize};
    use contract::status::{MeshStatus, STATUS_TIMEOUT_MS};

    use super::*;

    fn process(role: Role, epoch: Option<u64>, phase: MeshPhase) -> ProcessStatus {
        let mesh = MeshStatus {
            rank: Some(Rank::LEADER),
            world_size: WorldSize::ONE,
            phase,
            epoch: epoch.map(MeshEpoch),
            lease: None,
            lease_holder: None,
            running: None,
            last_call: None,
            running_plan: None,
            last_plan: None,
            last_fault: None,
            chunks: None,
            beats: Vec::new(),
            model: None,
        };
        ProcessStatus {
            version: CONTRACT_VERSION,
            cell: CellId::default(),
            role,
            instance: InstanceId::random(),
            build: String::new(),
            ready: true,
            waiting_for: None,
            draining: false,
            uptime_ms: 0,
            pid: 1,
            rss_bytes: 0,
            mesh: Some(mesh),
            stage0: None,
        }
    }

    #[test]
    fn the_leader_of_the_newest_epoch_counts_and_a_silent_one_is_gone() {
        let now = Instant::now();
        let cell = Cell::new(now);
        assert_eq!(cell.leader(now), None);
        cell.hear(now, process(Role::MeshLeader, Some(4), MeshPhase::Ready));
        cell.hear(now, process(Role::TpWorker, Some(9), MeshPhase::Ready));
        cell.hear(now, process(Role::MeshLeader, Some(5), MeshPhase::Warming));
        let leader = cell.leader(now).unwrap();
        assert_eq!((leader.epoch, leader.takes_calls()), (Some(MeshEpoch(5)), false));
        assert_eq!(cell.leader(now + Duration::from_millis(STATUS_TIMEOUT_MS)), None);
    }
}
