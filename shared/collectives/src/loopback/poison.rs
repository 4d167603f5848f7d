//! A group is poisoned once, by the first rank that aborts, fails or leaves. From then on nobody waits in it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use std::{slice, thread};

use super::layout::{Layout, REASON_BYTES};
use super::wait;

const HEALTHY: u32 = 0;
/// The reason is being written. Whoever does so may die meanwhile, so this alone counts as poisoned.
const POISONED: u32 = 1;
const REASON_WRITTEN: u32 = 2;

/// Writing takes microseconds, unless the writer loses its core in between. One that died never ends.
const WRITING: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_micros(50);

pub(super) fn is_set(layout: &Layout) -> bool {
    layout.poison().load(Ordering::Acquire) != HEALTHY
}

/// The first reason stands.
pub(super) fn set(layout: &Layout, reason: &str) {
    let poison = layout.poison();
    if poison.compare_exchange(HEALTHY, POISONED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
        let text = &reason.as_bytes()[..reason.len().min(REASON_BYTES)];
        // SAFETY: the span holds REASON_BYTES; the exchange above made this the only writer, and readers wait for
        // REASON_WRITTEN.
        unsafe { slice::from_raw_parts_mut(layout.reason(), text.len()) }.copy_from_slice(text);
        layout.reason_len().store(text.len() as u32, Ordering::Relaxed);
        poison.store(REASON_WRITTEN, Ordering::Release);
    }
    wait::ring_all(layout);
}

/// Of a group that is poisoned.
pub(super) fn reason(layout: &Layout) -> String {
    let give_up = Instant::now() + WRITING;
    while layout.poison().load(Ordering::Acquire) != REASON_WRITTEN {
        if Instant::now() >= give_up {
            return "a rank failed without leaving its reason".to_owned();
        }
        thread::sleep(LOOK);
    }
    let len = (layout.reason_len().load(Ordering::Relaxed) as usize).min(REASON_BYTES);
    // SAFETY: the span holds REASON_BYTES, and nobody writes once REASON_WRITTEN is set.
    let text = unsafe { slice::from_raw_parts(layout.reason(), len) };
    String::from_utf8_lossy(text).into_owned()
}
