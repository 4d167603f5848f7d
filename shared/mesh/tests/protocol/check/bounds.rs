//! How large the explored worlds are.

use std::time::Duration;

use mesh::Timing;

use crate::cell::Setup;

/// One step of the clock.
pub(crate) const STEP: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) faults: u8,
    /// Formations of the mesh; what would be one more is not explored.
    pub(crate) epochs: u8,
    pub(crate) duplicates: u8,
    pub(crate) calls: u8,
}

/// Every timer in whole steps, as short as their order allows.
pub(crate) fn timing() -> Timing {
    let steps = |n: u32| STEP * n;
    Timing {
        tick: STEP,
        lease_ttl: steps(3),
        absence: Duration::ZERO,
        beat_silence: steps(2),
        watchdog: steps(3),
        orphan_grace: steps(1000),
        join_retry: STEP,
        join_forget: steps(2),
        connect: steps(2),
        resend: STEP,
        plan: STEP,
        load: steps(3),
        warm_up: steps(2),
        abort: STEP,
        drain: steps(2),
        noop: steps(2),
        control: STEP,
    }
}

pub(crate) fn setup(ranks: u32, controllers: usize) -> Setup {
    Setup { ranks, controllers, warm_up_chunks: 0, timing: timing(), call: STEP * 2, sabotage: None }
}
