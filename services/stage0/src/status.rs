//! What this process tells of itself, to the cell twice a second and to an operator at once.

use std::time::Instant;

use bus::Bus;
use contract::CONTRACT_VERSION;
use contract::ids::{CellId, InstanceId};
use contract::status::{ProcessStatus, Role, Stage0Status};
use runtime::{Recorder, vitals};

use crate::sessions::Sessions;

/// Clones tell of the same process.
#[derive(Clone)]
pub(crate) struct Portrait {
    pub bus: Bus,
    pub cell_id: CellId,
    pub instance: InstanceId,
    pub build: &'static str,
    pub started: Instant,
    pub sessions: Sessions,
    pub recorder: Recorder,
}

impl Portrait {
    pub(crate) fn is_connected(&self) -> bool {
        self.bus.state().borrow().is_connected()
    }

    /// Why no session is taken; `None` when some are.
    pub(crate) fn waiting_for(&self) -> Option<String> {
        if self.sessions.is_closed() {
            return Some("draining".to_owned());
        }
        if !self.is_connected() {
            return Some("broker".to_owned());
        }
        self.sessions.mesh().view().waiting_for
    }

    pub(crate) fn status(&self, now: Instant) -> ProcessStatus {
        let waiting_for = self.waiting_for();
        let uptime = now.saturating_duration_since(self.started).as_millis();
        ProcessStatus {
            version: CONTRACT_VERSION,
            cell: self.cell_id.clone(),
            role: Role::Stage0,
            instance: self.instance,
            build: self.build.to_owned(),
            ready: waiting_for.is_none(),
            waiting_for,
            draining: self.sessions.is_closed(),
            uptime_ms: u64::try_from(uptime).unwrap_or(u64::MAX),
            pid: std::process::id(),
            rss_bytes: vitals::rss_bytes(),
            mesh: None,
            stage0: Some(self.stage0(now)),
        }
    }

    fn stage0(&self, now: Instant) -> Stage0Status {
        let mesh = self.sessions.mesh().view();
        let reports = self.sessions.reports();
        let last = self.sessions.last_chunk();
        Stage0Status {
            model: self.sessions.model().clone(),
            sessions: u32::try_from(reports.len()).unwrap_or(u32::MAX),
            capacity: self.sessions.capacity(),
            lease: mesh.lease,
            link: mesh.link,
            running: mesh.running,
            last_call: mesh.last_call,
            calls: mesh.calls,
            call_budget_ms: u64::try_from(mesh.budget.as_millis()).unwrap_or(u64::MAX),
            last_fault: self.recorder.last_fault(now),
            last_chunk: last.map(|(timings, _)| timings),
            fps: last.map(|(_, fps)| fps),
            reports,
        }
    }
}
