//! How long things took lately. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use contract::status::RunTimes;

/// Runs that are looked back on.
pub const RUNS: usize = 128;

/// Durations of the last [`RUNS`] runs of one kind.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    took: VecDeque<Duration>,
}

impl Recent {
    pub fn record(&mut self, took: Duration) {
        if self.took.len() == RUNS {
            self.took.pop_front();
        }
        self.took.push_back(took);
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.took.len()
    }

    /// The smallest duration that `percent` of the runs did not exceed; `None` without any.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted: Vec<_> = self.took.iter().copied().collect();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent.min(100)).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }

    /// For status; `None` without any.
    #[must_use]
    pub fn times(&self) -> Option<RunTimes> {
        let ms = |took: Duration| (took.as_secs_f64() * 1e3) as f32;
        Some(RunTimes {
            count: u32::try_from(self.took.len()).unwrap_or(u32::MAX),
            last_ms: ms(*self.took.back()?),
            p50_ms: ms(self.percentile(50)?),
            p99_ms: ms(self.percentile(99)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn percentiles_are_of_the_last_runs_only() {
        let mut recent = Recent::default();
        assert_eq!((recent.percentile(99), recent.times()), (None, None));
        recent.record(9_000 * MS);
        assert_eq!(recent.percentile(50), Some(9_000 * MS));
        (1..=128).for_each(|n| recent.record(n * MS));
        assert_eq!(recent.count(), RUNS);
        assert_eq!(recent.percentile(50), Some(64 * MS));
        assert_eq!(recent.percentile(99), Some(127 * MS));
        let times = recent.times().unwrap();
        assert_eq!((times.count, times.last_ms, times.p99_ms), (128, 128.0, 127.0));
    }
}
