//! How long a call may take: a multiple of what calls took lately. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// Calls that the measure looks back on.
const CALLS: usize = 128;
/// With fewer, the measure says nothing.
const ENOUGH: usize = 8;
/// Budget over the 99th percentile.
const MARGIN: u32 = 4;

#[derive(Debug)]
pub(crate) struct CallBudget {
    /// Until enough was measured.
    initial: Duration,
    floor: Duration,
    took: VecDeque<Duration>,
}

impl CallBudget {
    pub(crate) fn new(initial: Duration, floor: Duration) -> Self {
        Self { initial, floor, took: VecDeque::new() }
    }

    /// A call that ended well.
    pub(crate) fn record(&mut self, took: Duration) {
        self.took.push_back(took);
        if self.took.len() > CALLS {
            self.took.pop_front();
        }
    }

    pub(crate) fn budget(&self) -> Duration {
        if self.took.len() < ENOUGH {
            return self.initial;
        }
        let mut sorted: Vec<_> = self.took.iter().copied().collect();
        sorted.sort_unstable();
        let p99 = sorted[(sorted.len() * 99).div_ceil(100) - 1];
        (p99 * MARGIN).max(self.floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_budget_follows_the_slowest_calls_above_a_floor() {
        let mut budget = CallBudget::new(10_000 * MS, 2_000 * MS);
        assert_eq!(budget.budget(), 10_000 * MS);
        (0..ENOUGH).for_each(|_| budget.record(100 * MS));
        assert_eq!(budget.budget(), 2_000 * MS);
        budget.record(900 * MS);
        assert_eq!(budget.budget(), 3_600 * MS);
        (0..CALLS).for_each(|_| budget.record(1_000 * MS));
        assert_eq!(budget.budget(), 4_000 * MS);
    }
}
