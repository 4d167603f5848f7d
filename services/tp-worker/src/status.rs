//! Status on the broker at 2 Hz, readiness and metrics, all from the board.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::Bus;
use contract::status::{MeshStatus, ProcessStatus, Role, STATUS_INTERVAL_MS};
use contract::{CONTRACT_VERSION, CellId, WorldSize, subjects};
use runtime::{Readiness, Recorder, metric_names, vitals};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::board::{Board, Shown};

pub(crate) struct Reporter {
    pub(crate) bus: Bus,
    pub(crate) cell: CellId,
    pub(crate) build: &'static str,
    pub(crate) board: Arc<Board>,
    pub(crate) recorder: Recorder,
    pub(crate) readiness: Readiness,
}

impl Reporter {
    /// Until it is dropped.
    pub(crate) async fn run(self) {
        let started = Instant::now();
        let subject = subjects::cell_status(&self.cell);
        let mut tick = interval(Duration::from_millis(STATUS_INTERVAL_MS));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let status = self.status(started);
            match &status.waiting_for {
                Some(what) => self.readiness.set_waiting(what.clone()),
                None if status.draining => self.readiness.set_waiting("draining"),
                None => self.readiness.set_ready(),
            }
            if let Some(mesh) = &status.mesh {
                metrics::gauge!(metric_names::MESH_EPOCH).set(mesh.epoch.map_or(0.0, |epoch| epoch.0 as f64));
                metrics::gauge!(metric_names::WORLD_SIZE).set(f64::from(mesh.world_size.get()));
            }
            if let Err(error) = self.bus.publish(&subject, &status).await {
                debug!(%error, "status was not published");
            }
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
            role: Role::TpWorker,
            instance: self.board.instance(),
            build: self.build.to_owned(),
            ready: waiting_for.is_none() && !view.draining,
            waiting_for,
            draining: view.draining,
            uptime_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            pid: std::process::id(),
            rss_bytes: vitals::rss_bytes(),
            mesh: Some(MeshStatus {
                rank: view.rank,
                world_size: view.world_size.unwrap_or(WorldSize::ONE),
                phase: view.phase,
                epoch: view.epoch,
                lease: None,
                lease_holder: None,
                running: None,
                last_call: None,
                running_plan: activity.running_plan(),
                last_plan: activity.last_plan(),
                last_fault: self.recorder.last_fault(now),
                chunks: activity.chunks.times(),
                beats: activity.beats(now),
                model: None,
            }),
            stage0: None,
        }
    }
}
