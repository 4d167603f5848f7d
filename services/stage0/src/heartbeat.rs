//! What this process tells the cell, twice a second: its status, and through `/ready` whether it can work.

use std::time::{Duration, Instant};

use bus::Bus;
use contract::CONTRACT_VERSION;
use contract::ids::{CellId, InstanceId};
use contract::status::{ProcessStatus, Role, STATUS_INTERVAL_MS, Stage0Status};
use contract::subjects;
use runtime::{Readiness, metric_names};
use tokio::time::MissedTickBehavior;
use tracing::debug;

use crate::sessions::Sessions;

pub(crate) struct Heartbeat {
    pub bus: Bus,
    pub cell_id: CellId,
    pub instance: InstanceId,
    pub build: String,
    pub sessions: Sessions,
    pub readiness: Readiness,
}

impl Heartbeat {
    /// Never ends by itself.
    pub(crate) async fn run(self) {
        let started = Instant::now();
        let subject = subjects::cell_status(&self.cell_id);
        let mut tick = tokio::time::interval(Duration::from_millis(STATUS_INTERVAL_MS));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut mesh = self.sessions.mesh().changes();
        let mut shown = None;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                // Readiness is shown as soon as it changes.
                _ = mesh.wait_for(|view| view.waiting_for != shown) => {}
            }
            shown = mesh.borrow().waiting_for.clone();
            self.look();
            if let Err(error) = self.bus.publish(&subject, &self.status(started)).await {
                debug!(%error, "no status was published");
            }
        }
    }

    fn look(&self) {
        let connected = self.bus.state().borrow().is_connected();
        metrics::gauge!(metric_names::BUS_CONNECTED).set(f64::from(u8::from(connected)));
        let waiting =
            if connected { self.sessions.mesh().view().waiting_for } else { Some("broker".to_owned()) };
        match waiting {
            _ if self.sessions.is_closed() => self.readiness.set_waiting("draining"),
            Some(what) => self.readiness.set_waiting(what),
            None => self.readiness.set_ready(),
        }
    }

    fn status(&self, started: Instant) -> ProcessStatus {
        let waiting_for = self.readiness.waiting();
        let last = self.sessions.last_chunk();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        ProcessStatus {
            version: CONTRACT_VERSION,
            cell: self.cell_id.clone(),
            role: Role::Stage0,
            instance: self.instance,
            build: self.build.clone(),
            ready: waiting_for.is_none(),
            waiting_for,
            draining: self.sessions.is_closed(),
            uptime_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            mesh: None,
            stage0: Some(Stage0Status {
                model: self.sessions.model().clone(),
                sessions: count(self.sessions.reports().len()),
                capacity: self.sessions.capacity(),
                lease: self.sessions.mesh().view().lease,
                last_chunk: last.map(|(timings, _)| timings),
                fps: last.map(|(_, fps)| fps),
            }),
        }
    }
}
