//! A supervised cell with every service behind a proxy, and a viewer who watches while it is hurt.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bus::Bus;
use contract::status::Role;
use serde_json::{Value, json};

use crate::cell::BROKER;
use crate::fault::PROCESSES;
use crate::{Cell, Fault, Trace, Viewer, leftovers};

const READY: Duration = Duration::from_secs(60);

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
    pub async fn start() -> Self {
        let services = PROCESSES.iter().filter(|name| **name != BROKER);
        let cell = services.fold(Cell::builder().supervised(), |cell, service| cell.behind_proxy(service));
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
        let mut trace = Trace::new(Instant::now());
        self.viewer.follow(&mut trace, fault.strike(&self.cell, process)).await;
        while trace.ended {
            trace.lost(Instant::now());
            self.viewer.recreate().await;
            self.viewer.follow(&mut trace, std::future::ready(())).await;
        }
        self.cell.wait_ready(READY).await;
        let after = self.cell.pids();
        let restarted = before.iter().filter(|(name, pid)| after.get(*name) != Some(pid));
        let restarted = restarted.map(|(name, _)| name.clone()).collect();
        Cost { process: process.to_owned(), fault, trace, restarted }
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
            "frames_again_after_ms": ms(self.trace.again_after()),
            "chunks_lost": self.trace.chunks_lost(), "outcome": self.outcome(), "restarted": self.restarted,
            "told": self.trace.errors.first(),
        })
    }
}
