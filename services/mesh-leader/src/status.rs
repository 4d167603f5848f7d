//! Status on the broker at 2 Hz, readiness and metrics, all from the board.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::Bus;
use contract::envelope::MeshPhase;
use contract::model::ModelInfo;
use contract::status::{MeshStatus, ProcessStatus, Role, STATUS_INTERVAL_MS};
use contract::{CONTRACT_VERSION, CellId, MeshEpoch, Rank, WorldSize, subjects};
use runtime::{Readiness, Recorder, metric_names, vitals};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::board::{Board, Shown};

const PHASES: [MeshPhase; 8] = [
    MeshPhase::Forming,
    MeshPhase::Loading,
    MeshPhase::Warming,
    MeshPhase::Ready,
    MeshPhase::Busy,
    MeshPhase::Draining,
    MeshPhase::Stopped,
    MeshPhase::Faulted,
];

pub(crate) struct Reporter {
    pub(crate) bus: Bus,
    pub(crate) cell: CellId,
    pub(crate) build: &'static str,
    pub(crate) world_size: WorldSize,
    pub(crate) model: ModelInfo,
    pub(crate) board: Arc<Board>,
    pub(crate) recorder: Recorder,
    pub(crate) readiness: Readiness,
}

impl Reporter {
    /// Until it is dropped.
    pub(crate) async fn run(self) {
        let started = Instant::now();
        let subject = subjects::cell_status(&self.cell);
        let mut tick = interval(Duration::from_millis(STATUS_INTERVAL_MS / 5));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut ticks, mut last) = (0_u64, None);
        loop {
            tick.tick().await;
            let status = self.status(started);
            self.show(&status);
            // At 2 Hz, and at once when the phase changes.
            let phase = status.mesh.as_ref().map(|mesh| (mesh.phase, mesh.epoch));
            if (ticks.is_multiple_of(5) || turned(last, phase))
                && let Err(error) = self.bus.publish(&subject, &status).await
            {
                debug!(%error, "status was not published");
            }
            ticks += 1;
            last = phase;
        }
    }

    fn status(&self, started: Instant) -> ProcessStatus {
        let now = Instant::now();
        let Shown { view, activity } = self.board.shown();
        let bus_up = self.bus.state().borrow().is_connected();
        let waiting_for = if bus_up { view.waiting_for } else { Some("broker".to_owned()) };
        ProcessStatus {
            version: CONTRACT_VERSION,
            cell: self.cell.clone(),
            role: Role::MeshLeader,
            instance: self.board.instance(),
            build: self.build.to_owned(),
            ready: waiting_for.is_none() && !view.draining,
            waiting_for,
            draining: view.draining,
            uptime_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            pid: std::process::id(),
            rss_bytes: vitals::rss_bytes(),
            mesh: Some(MeshStatus {
                rank: Some(Rank::LEADER),
                world_size: self.world_size,
                phase: view.phase,
                epoch: view.epoch,
                lease: view.lease,
                lease_holder: view.lease_holder,
                running: view.running,
                last_call: view.last_call,
                running_plan: activity.running_plan(),
                last_plan: activity.last_plan(),
                last_fault: self.recorder.last_fault(now),
                chunks: activity.chunks.times(),
                beats: activity.beats(now),
                model: Some(self.model.clone()),
            }),
            stage0: None,
        }
    }

    fn show(&self, status: &ProcessStatus) {
        match &status.waiting_for {
            Some(what) => self.readiness.set_waiting(what.clone()),
            None if status.draining => self.readiness.set_waiting("draining"),
            None => self.readiness.set_ready(),
        }
        let Some(mesh) = &status.mesh else { return };
        for phase in PHASES {
            let now = if phase == mesh.phase { 1.0 } else { 0.0 };
            metrics::gauge!(metric_names::MESH_STATE, "state" => phase.as_str()).set(now);
        }
        metrics::gauge!(metric_names::MESH_EPOCH).set(mesh.epoch.map_or(0.0, |epoch| epoch.0 as f64));
        metrics::gauge!(metric_names::WORLD_SIZE).set(f64::from(self.world_size.get()));
    }
}

/// Whether the phase or the epoch is another one; ready and busy alternate with every chunk and count as one.
fn turned(last: Option<(MeshPhase, Option<MeshEpoch>)>, now: Option<(MeshPhase, Option<MeshEpoch>)>) -> bool {
    let calm = |p: Option<(MeshPhase, Option<MeshEpoch>)>| {
        p.map(|(phase, epoch)| (if phase == MeshPhase::Busy { MeshPhase::Ready } else { phase }, epoch))
    };
    calm(last) != calm(now)
}
