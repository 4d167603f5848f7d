//! What a rank does, as status tells it. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use contract::Rank;
use contract::status::BeatAge;
use contract::tp::PlanId;

use crate::recent::Recent;

/// Kept by the shell of a leader or worker beside its machine.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    /// Generator runs that ended well.
    pub chunks: Recent,
    running: Option<PlanId>,
    last: Option<PlanId>,
    beats: BTreeMap<Rank, Instant>,
}

impl Activity {
    /// The engine got a plan to run.
    pub fn began(&mut self, plan: PlanId) {
        self.running = Some(plan);
        self.last = Some(plan);
    }

    /// The engine is done with it; `took` if it ended well.
    pub fn ended(&mut self, plan: PlanId, took: Option<Duration>) {
        if self.running == Some(plan) {
            self.running = None;
        }
        if let Some(took) = took {
            self.chunks.record(took);
        }
    }

    /// A beat of a peer came.
    pub fn beat(&mut self, rank: Rank, now: Instant) {
        self.beats.insert(rank, now);
    }

    /// The epoch is over: its peers are nobody's any more.
    pub fn epoch_over(&mut self) {
        self.beats.clear();
    }

    #[must_use]
    pub fn running_plan(&self) -> Option<PlanId> {
        self.running
    }

    #[must_use]
    pub fn last_plan(&self) -> Option<PlanId> {
        self.last
    }

    #[must_use]
    pub fn beats(&self, now: Instant) -> Vec<BeatAge> {
        let age = |heard: Instant| now.saturating_duration_since(heard).as_millis();
        let beat = |(rank, heard): (&Rank, &Instant)| BeatAge { rank: *rank, age_ms: to_u64(age(*heard)) };
        self.beats.iter().map(beat).collect()
    }
}

fn to_u64(ms: u128) -> u64 {
    u64::try_from(ms).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_runs_until_it_is_over_and_only_a_good_end_is_measured() {
        let mut activity = Activity::default();
        activity.began(PlanId(4));
        assert_eq!((activity.running_plan(), activity.last_plan()), (Some(PlanId(4)), Some(PlanId(4))));
        activity.ended(PlanId(4), None);
        assert_eq!((activity.running_plan(), activity.chunks.count()), (None, 0));
        activity.began(PlanId(5));
        activity.ended(PlanId(5), Some(Duration::from_millis(70)));
        assert_eq!((activity.last_plan(), activity.chunks.count()), (Some(PlanId(5)), 1));
    }

    #[test]
    fn beats_age_and_end_with_their_epoch() {
        let (mut activity, now) = (Activity::default(), Instant::now());
        activity.beat(Rank(2), now);
        activity.beat(Rank(1), now + Duration::from_millis(300));
        let beats = activity.beats(now + Duration::from_millis(400));
        let ages: Vec<_> = beats.iter().map(|beat| (beat.rank, beat.age_ms)).collect();
        assert_eq!(ages, [(Rank(1), 100), (Rank(2), 400)]);
        activity.epoch_over();
        assert!(activity.beats(now).is_empty());
    }
}
