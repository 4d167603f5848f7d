//! Waiting for peers without burning a core: spin while a running peer would answer, then sleep.

use std::hint;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::thread::futex;

use super::layout::Layout;
use super::poison;

/// A peer that is already in the call answers within this. Where ranks share their cores with other processes, every
/// longer spin, and any yielding, only delays the peer: 33 us a call instead of 75 with four busy processes on 2 cores.
const SPIN: Duration = Duration::from_micros(5);
/// Longest sleep. Wake-ups are not lost, so this only bounds what a peer that breaks the protocol can do.
const PARK: Duration = Duration::from_millis(50);
const LOOKS_PER_CLOCK: u32 = 64;

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Poisoned,
    Late,
}

/// Returns once `ready` holds. What holds already counts, whether the group is poisoned or the deadline past.
pub(super) fn until(
    layout: &Layout,
    rank: u32,
    deadline: Instant,
    ready: impl Fn() -> bool,
) -> Result<(), Stop> {
    if ready() {
        return Ok(());
    }
    let start = Instant::now();
    loop {
        for _ in 0..LOOKS_PER_CLOCK {
            hint::spin_loop();
            if ready() {
                return Ok(());
            }
        }
        if poison::is_set(layout) {
            // The last a peer did before it poisoned the group may be what we wait for.
            return if ready() { Ok(()) } else { Err(Stop::Poisoned) };
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(Stop::Late);
        }
        if now - start >= SPIN {
            park(layout, rank, (deadline - now).min(PARK), &ready);
        }
    }
}

fn park(layout: &Layout, rank: u32, longest: Duration, ready: impl Fn() -> bool) {
    let bell = layout.bell(rank);
    bell.store(ASLEEP, Ordering::SeqCst);
    // Pairs with the fence in `ring`: either we see what the peer did, or it sees that we sleep.
    fence(Ordering::SeqCst);
    if !ready()
        && !poison::is_set(layout)
        && let Ok(timeout) = futex::Timespec::try_from(longest)
    {
        // Woken, interrupted or timed out: the caller looks again.
        let _ = futex::wait(bell, futex::Flags::empty(), ASLEEP, Some(&timeout));
    }
    bell.store(AWAKE, Ordering::SeqCst);
}

/// To be called after what the sleepers wait for has been stored.
pub(super) fn ring_all(layout: &Layout) {
    fence(Ordering::SeqCst);
    for rank in layout.ranks() {
        let bell = layout.bell(rank);
        if bell.load(Ordering::SeqCst) == ASLEEP {
            bell.store(AWAKE, Ordering::SeqCst);
            // One thread of a rank sleeps at a time.
            let _ = futex::wake(bell, futex::Flags::empty(), 1);
        }
    }
}
