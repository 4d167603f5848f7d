//! What bitrate to ask the encoder for, from what the receiver's feedback says the path carries.

use std::time::{Duration, Instant};

/// Share of the estimate that video may use: at the full estimate every keyframe builds a queue.
const SHARE: f64 = 0.82;
/// Changes smaller than this part of the current rate are not worth a request.
const HYSTERESIS: f64 = 0.1;
const RAISE_INTERVAL: Duration = Duration::from_secs(2);
const LOWER_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(crate) struct BitrateController {
    current_kbps: u32,
    min_kbps: u32,
    max_kbps: u32,
    changed: Instant,
}

impl BitrateController {
    pub(crate) fn new(now: Instant, start_kbps: u32, min_kbps: u32, max_kbps: u32) -> Self {
        Self { current_kbps: start_kbps, min_kbps, max_kbps, changed: now }
    }

    pub(crate) fn current_kbps(&self) -> u32 {
        self.current_kbps
    }

    /// The path's estimate in bits a second that corresponds to a video rate.
    pub(crate) fn estimate_for(kbps: u32) -> f64 {
        f64::from(kbps) * 1000.0 / SHARE
    }

    /// Takes an estimate in bits a second; returns the new rate if the encoder should change.
    pub(crate) fn estimate(&mut self, now: Instant, bits_per_second: f64) -> Option<u32> {
        if !bits_per_second.is_finite() || bits_per_second <= 0.0 {
            return None;
        }
        let wanted =
            (bits_per_second * SHARE / 1000.0).clamp(f64::from(self.min_kbps), f64::from(self.max_kbps));
        let current = f64::from(self.current_kbps);
        let interval = if wanted < current { LOWER_INTERVAL } else { RAISE_INTERVAL };
        let at_bound = wanted as u32 == self.min_kbps || wanted as u32 == self.max_kbps;
        let small = (wanted - current).abs() < current * HYSTERESIS
            && !(at_bound && wanted as u32 != self.current_kbps);
        if small || now.saturating_duration_since(self.changed) < interval {
            return None;
        }
        self.changed = now;
        self.current_kbps = wanted as u32;
        Some(self.current_kbps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn video_gets_less_than_the_path_carries_within_its_bounds() {
        let start = Instant::now();
        let mut bitrate = BitrateController::new(start, 1500, 150, 4000);
        assert_eq!(bitrate.estimate(start + seconds(3), 1_000_000.0), Some(820));
        assert_eq!(bitrate.estimate(start + seconds(6), 1e9), Some(4000));
        assert_eq!(bitrate.estimate(start + seconds(9), 1000.0), Some(150));
        assert_eq!(bitrate.estimate(start + seconds(12), f64::NAN), None);
    }

    #[test]
    fn small_changes_and_quick_raises_ask_for_nothing() {
        let start = Instant::now();
        let mut bitrate = BitrateController::new(start, 1000, 150, 4000);
        let same = BitrateController::estimate_for(1000);
        assert_eq!(bitrate.estimate(start + seconds(5), same * 1.05), None);
        assert_eq!(bitrate.estimate(start + seconds(5), same * 2.0), Some(2000));
        assert_eq!(bitrate.estimate(start + seconds(6), same * 4.0), None, "raised a second ago");
        assert_eq!(bitrate.estimate(start + seconds(6), same), Some(1000), "lowering is quick");
    }
}
