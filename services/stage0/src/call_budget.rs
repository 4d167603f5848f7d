//! The chunk watchdog: how long a call may take, as a multiple of what calls took lately. Pure.
//!
//! The budget travels with the call: the leader ends the call at its deadline, and each rank's monitor aborts its
//! collectives then. So this one number bounds a chunk everywhere.

use std::time::Duration;

use contract::status::RunTimes;
use mesh::Recent;

/// With fewer calls measured, the measure says nothing.
const ENOUGH: usize = 8;
/// Budget over the 99th percentile.
const MARGIN: u32 = 4;

/// What an operator sets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// The budget however fast calls are: what a busy machine may need once in a while.
    pub floor: Duration,
    /// The budget until enough calls were measured, and never more afterwards.
    pub ceiling: Duration,
}

#[derive(Debug)]
pub(crate) struct CallBudget {
    bounds: Bounds,
    recent: Recent,
    /// Calls that ran out of budget since the last that ended well.
    ran_out: u32,
}

impl CallBudget {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, recent: Recent::default(), ran_out: 0 }
    }

    /// A call that ended well.
    pub(crate) fn record(&mut self, took: Duration) {
        self.recent.record(took);
        self.ran_out = 0;
    }

    /// A call ran out of budget. The next gets twice as much: calls that became slow for good are measured again, instead
    /// of running out for ever.
    pub(crate) fn ran_out(&mut self) {
        self.ran_out += 1;
    }

    pub(crate) fn budget(&self) -> Duration {
        let Bounds { floor, ceiling } = self.bounds;
        let p99 = self.recent.percentile(99).filter(|_| self.recent.count() >= ENOUGH);
        let measured = p99.map_or(ceiling, |p99| p99.saturating_mul(MARGIN).max(floor));
        measured.saturating_mul(2_u32.saturating_pow(self.ran_out)).min(ceiling)
    }

    pub(crate) fn times(&self) -> Option<RunTimes> {
        self.recent.times()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const BOUNDS: Bounds = Bounds { floor: Duration::from_secs(2), ceiling: Duration::from_secs(10) };

    fn measured(calls: usize, took: Duration) -> CallBudget {
        let mut budget = CallBudget::new(BOUNDS);
        (0..calls).for_each(|_| budget.record(took));
        budget
    }

    #[test]
    fn calls_have_the_ceiling_until_enough_were_measured() {
        assert_eq!(CallBudget::new(BOUNDS).budget(), BOUNDS.ceiling);
        assert_eq!(measured(ENOUGH - 1, 100 * MS).budget(), BOUNDS.ceiling);
        assert_eq!(measured(ENOUGH, 100 * MS).budget(), BOUNDS.floor);
    }

    #[test]
    fn the_budget_is_a_multiple_of_the_slowest_calls_between_floor_and_ceiling() {
        let mut budget = measured(ENOUGH, 100 * MS);
        budget.record(900 * MS);
        assert_eq!(budget.budget(), 3_600 * MS);
        assert_eq!(measured(200, 1_000 * MS).budget(), 4_000 * MS);
        assert_eq!(measured(200, 9_000 * MS).budget(), BOUNDS.ceiling);
    }

    #[test]
    fn one_slow_call_in_a_hundred_changes_nothing() {
        let mut budget = measured(127, 1_000 * MS);
        budget.record(2_400 * MS);
        assert_eq!(budget.budget(), 4_000 * MS);
        budget.record(2_400 * MS);
        assert_eq!(budget.budget(), 9_600 * MS);
    }

    #[test]
    fn calls_that_run_out_get_more_until_one_ends_well() {
        let mut budget = measured(128, 600 * MS);
        let mut seen = vec![budget.budget()];
        for _ in 0..3 {
            budget.ran_out();
            seen.push(budget.budget());
        }
        assert_eq!(seen, [2_400 * MS, 4_800 * MS, 9_600 * MS, BOUNDS.ceiling]);
        budget.record(3_000 * MS);
        assert_eq!(budget.budget(), 2_400 * MS);
        budget.record(3_000 * MS);
        assert_eq!(budget.budget(), BOUNDS.ceiling, "two of them are no accident");
    }
}
