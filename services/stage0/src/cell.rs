//! What the processes of the cell say of themselves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bus::{Bus, Subscription};
use contract::CONTRACT_VERSION;
use contract::envelope::MeshPhase;
use contract::error::Error;
use contract::ids::{CellId, InstanceId, MeshEpoch};
use contract::status::{ProcessStatus, Role, STATUS_TIMEOUT_MS};
use contract::subjects;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Status messages that may wait.
const BACKLOG: usize = 256;
/// Processes remembered, whatever the broker brings.
const PROCESSES: usize = 256;
const TIMEOUT: Duration = Duration::from_millis(STATUS_TIMEOUT_MS);

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

type Heard = HashMap<InstanceId, (ProcessStatus, Instant)>;

/// Clones share what was heard.
#[derive(Clone, Default)]
pub(crate) struct Cell(Arc<Mutex<Heard>>);

impl Cell {
    /// Listens until `stop`.
    ///
    /// # Errors
    /// The broker refuses the subscription or is away.
    pub(crate) async fn listen(bus: &Bus, cell: &CellId, stop: CancellationToken) -> Result<Self, Error> {
        let subscription = bus.subscribe(&subjects::cell_status(cell), BACKLOG).await?;
        let heard = Self::default();
        tokio::spawn(stop.run_until_cancelled_owned(heard.clone().receive(subscription)));
        Ok(heard)
    }

    async fn receive(self, mut subscription: Subscription) {
        while let Some(message) = subscription.next().await {
            match message.decode::<ProcessStatus>() {
                Ok(status) if status.version == CONTRACT_VERSION => self.heard(status, message.received),
                Ok(status) => {
                    warn!(version = status.version, "a status of another contract version is ignored")
                }
                Err(error) => warn!(%error, "a status message is ignored"),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self, status: ProcessStatus, now: Instant) {
        let mut heard = self.lock();
        heard.retain(|_, (_, at)| now.saturating_duration_since(*at) < TIMEOUT);
        if heard.len() < PROCESSES || heard.contains_key(&status.instance) {
            heard.insert(status.instance, (status, now));
        }
    }

    /// Every process heard lately, by role.
    pub(crate) fn processes(&self, now: Instant) -> Vec<ProcessStatus> {
        let heard = self.lock();
        let fresh = heard.values().filter(|(_, at)| now.saturating_duration_since(*at) < TIMEOUT);
        let mut processes: Vec<_> = fresh.map(|(status, _)| status.clone()).collect();
        processes.sort_by_key(|status| (status.role, status.instance));
        processes
    }

    /// The leader of the newest epoch heard lately.
    pub(crate) fn leader(&self, now: Instant) -> Option<LeaderView> {
        let heard = self.lock();
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < TIMEOUT;
        let leaders = heard.values().filter(|(status, at)| status.role == Role::MeshLeader && fresh(at));
        let mesh = leaders.filter_map(|(status, at)| Some((status.mesh.as_ref()?, status, at)));
        mesh.max_by_key(|(mesh, ..)| mesh.epoch).map(|(mesh, status, at)| LeaderView {
            epoch: mesh.epoch,
            phase: mesh.phase,
            waiting_for: status.waiting_for.clone(),
            at: *at,
        })
    }
}

#[cfg(test)]
mod tests {
    use contract::ids::{Rank, WorldSize};
    use contract::status::MeshStatus;

    use super::*;

    fn process(role: Role, epoch: Option<u64>, phase: MeshPhase) -> ProcessStatus {
        let mesh = MeshStatus {
            rank: Some(Rank::LEADER),
            world_size: WorldSize::ONE,
            phase,
            epoch: epoch.map(MeshEpoch),
            lease: None,
            running: None,
            last_fault: None,
            last_chunk_ms: None,
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
            mesh: Some(mesh),
            stage0: None,
        }
    }

    #[test]
    fn the_leader_of_the_newest_epoch_counts_and_a_silent_one_is_gone() {
        let (cell, now) = (Cell::default(), Instant::now());
        assert_eq!(cell.leader(now), None);
        cell.heard(process(Role::MeshLeader, Some(4), MeshPhase::Ready), now);
        cell.heard(process(Role::TpWorker, Some(9), MeshPhase::Ready), now);
        cell.heard(process(Role::MeshLeader, Some(5), MeshPhase::Warming), now);
        let leader = cell.leader(now).unwrap();
        assert_eq!((leader.epoch, leader.takes_calls()), (Some(MeshEpoch(5)), false));
        assert_eq!(cell.leader(now + TIMEOUT), None);
    }
}
