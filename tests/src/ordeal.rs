//! A supervised cell with every service behind a proxy, and a viewer who watches while it is hurt.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bus::{Bus, Subscription};
use contract::envelope::MeshPhase;
use contract::status::{ProcessStatus, Role};
use contract::{MeshEpoch, subjects};
use serde_json::{Value, json};

use crate::cell::{BROKER, CellBuilder};
use crate::fault::PROCESSES;
use crate::{Cell, Fault, Trace, Viewer, leftovers};

const READY: Duration = Duration::from_secs(60);
const STATUSES: usize = 256;

pub struct Ordeal {
    cell: Cell,
    bus: Bus,
    viewer: Viewer,
}

/// What one fault cost.
#[derive(Clone, Debug)]
pub struct Cost {
    pub process: String,
    pub fault: Fault,
    pub trace: Trace,
    /// From the fault to the first sign of another mesh epoch that takes calls, which the leader gives within 100 ms.
    pub formed_after: Option<Duration>,
    /// Processes that are others afterwards.
    pub restarted: Vec<String>,
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vitals {
    pub pid: u32,
    pub resident_kib: u64,
    pub descriptors: usize,
    /// Segments of shared memory that it has mapped.
    pub segments: usize,
}

impl Ordeal {
    /// A cell that streams.
    ///
    /// # Panics
    /// If it does not get that far.
    pub async fn start(cell: CellBuilder) -> Self {
        let services = PROCESSES.iter().filter(|name| **name != BROKER);
        let cell = services.fold(cell.supervised(), |cell, service| cell.behind_proxy(service));
        let cell = cell.ready().await;
        let bus = cell.bus("gateway").await;
        let mut viewer = Viewer::open(&bus, &cell.id(), &json!({"prompts": [{"text": "a red fox"}]})).await;
        viewer.chunks_until(2).await;
        Self { cell, bus, viewer }
    }

    /// Hurts a process and watches until frames have flowed for a while and the cell is ready.
    ///
    /// # Panics
    /// If that does not come to pass.
    pub async fn strike(&mut self, fault: Fault, process: &str) -> Cost {
        let before = self.cell.pids();
        let serving = self.cell.status(|status| serving(status).is_some()).await;
        let statuses = self.bus.subscribe(&subjects::cell_status(&self.cell.id()), STATUSES).await;
        let formed = tokio::spawn(formed(statuses.expect("statuses"), serving.mesh.and_then(|m| m.epoch)));
        let struck = Instant::now();
        let mut trace = Trace::new(struck);
        self.viewer.follow(&mut trace, fault.strike(&self.cell, process)).await;
        while trace.ended {
            trace.lost(Instant::now());
            self.viewer.recreate().await;
            self.viewer.follow(&mut trace, std::future::ready(())).await;
        }
        self.cell.wait_ready(READY).await;
        // Frames flow: if there was another epoch, it was told.
        formed.abort();
        let formed_after = formed.await.ok().map(|at: Instant| at.saturating_duration_since(struck));
        let after = self.cell.pids();
        let restarted = before.iter().filter(|(name, pid)| after.get(*name) != Some(pid));
        let restarted = restarted.map(|(name, _)| name.clone()).collect();
        Cost { process: process.to_owned(), fault, trace, formed_after, restarted }
    }

    #[must_use]
    pub fn vitals(&self) -> BTreeMap<String, Vitals> {
        let one = |(name, pid)| {
            let vitals = Vitals {
                pid,
                resident_kib: leftovers::resident_kib(pid),
                descriptors: leftovers::descriptors(pid),
                segments: leftovers::mapped_memory(pid).len(),
            };
            (name, vitals)
        };
        self.cell.pids().into_iter().map(one).collect()
    }

    /// Living processes of the cell that it does not know.
    #[must_use]
    pub fn orphans(&self) -> BTreeSet<u32> {
        self.cell.orphans()
    }

    /// Sessions that stage0 has.
    pub async fn sessions(&self) -> u32 {
        let status = self.cell.status(|status| status.role == Role::Stage0).await;
        status.stage0.map_or(0, |stage0| stage0.sessions)
    }

    /// Ends the session and stops the cell, which must leave nothing behind.
    ///
    /// # Panics
    /// If something is left.
    pub async fn end(self) {
        self.viewer.end().await;
        drop(self.bus);
        self.cell.stop().await;
    }
}

/// The mesh epoch that a leader serves.
fn serving(status: &ProcessStatus) -> Option<MeshEpoch> {
    let mesh = status.mesh.as_ref().filter(|_| status.role == Role::MeshLeader)?;
    mesh.epoch.filter(|_| matches!(mesh.phase, MeshPhase::Ready | MeshPhase::Busy))
}

/// When a leader is heard that serves another epoch than `before`.
async fn formed(mut statuses: Subscription, before: Option<MeshEpoch>) -> Instant {
    loop {
        let inbound = statuses.next().await.expect("a subscription that lives");
        let epoch = inbound.decode().ok().as_ref().and_then(serving);
        if epoch.is_some() && epoch != before {
            return inbound.received;
        }
    }
}

impl Cost {
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        if self.trace.lives_lost == 0 { "the session goes on" } else { "the session was asked for again" }
    }

    #[must_use]
    pub fn json(&self) -> Value {
        let ms =
            |time: Option<Duration>| time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        json!({
            "process": self.process, "fault": self.fault.to_string(),
            "noticed_after_ms": ms(self.trace.noticed_after()),
            "formed_after_ms": ms(self.formed_after),
            "frames_again_after_ms": ms(self.trace.again_after()),
            "chunks_lost": self.trace.chunks_lost(), "outcome": self.outcome(), "restarted": self.restarted,
            "told": self.trace.errors.first(),
        })
    }
}
