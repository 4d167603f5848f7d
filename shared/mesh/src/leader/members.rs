//! The workers of one mesh epoch, from their first request to join.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use contract::{InstanceId, Rank, WorldSize};

use crate::Timing;
use crate::invariants::{self, Violation};
use crate::liveness::Watch;

#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    waiting: Vec<Candidate>,
    assigned: BTreeMap<Rank, Member>,
}

#[derive(Clone, Debug)]
struct Candidate {
    instance: InstanceId,
    holds: Option<(Rank, WorldSize)>,
    asked: Instant,
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) instance: InstanceId,
    /// Its liveness socket was opened.
    pub(super) connected: bool,
    pub(super) leaving: bool,
    watch: Watch,
}

impl Members {
    /// Notes that `instance` waits for a rank.
    pub(super) fn wait(&mut self, now: Instant, instance: InstanceId, holds: Option<(Rank, WorldSize)>) {
        match self.waiting.iter_mut().find(|c| c.instance == instance) {
            Some(candidate) => candidate.asked = now,
            None => self.waiting.push(Candidate { instance, holds, asked: now }),
        }
    }

    pub(super) fn waiting(&self) -> u32 {
        u32::try_from(self.waiting.len()).unwrap_or(u32::MAX)
    }

    /// Gives every rank to a waiting worker if there are enough: a rank whose shard a worker holds to that worker, the
    /// others in the order of asking. Whoever stopped asking is forgotten: it may be dead.
    pub(super) fn assign(
        &mut self,
        now: Instant,
        world: WorldSize,
        timing: &Timing,
    ) -> Result<bool, Violation> {
        let wanted = world.get() as usize - 1;
        self.waiting.retain(|c| now.saturating_duration_since(c.asked) <= timing.join_forget);
        if self.waiting.len() < wanted {
            return Ok(false);
        }
        let mut candidates: Vec<Candidate> = self.waiting.drain(..).take(wanted).collect();
        let mut ranks: BTreeMap<Rank, Candidate> = BTreeMap::new();
        for rank in world.workers() {
            if let Some(at) = candidates.iter().position(|c| c.holds == Some((rank, world))) {
                ranks.insert(rank, candidates.remove(at));
            }
        }
        let mut others = candidates.into_iter();
        for rank in world.workers() {
            if !ranks.contains_key(&rank)
                && let Some(candidate) = others.next()
            {
                ranks.insert(rank, candidate);
            }
        }
        invariants::ranks_are_distinct(&ranks.keys().copied().collect::<Vec<_>>())?;
        let watch = Watch::new(now, timing.connect);
        let member = |c: Candidate| Member { instance: c.instance, connected: false, leaving: false, watch };
        self.assigned = ranks.into_iter().map(|(rank, candidate)| (rank, member(candidate))).collect();
        Ok(true)
    }

    pub(super) fn rank_of(&self, instance: InstanceId) -> Option<(Rank, &Member)> {
        self.assigned.iter().find(|(_, m)| m.instance == instance).map(|(rank, member)| (*rank, member))
    }

    /// A beat came; false if it is not from a member.
    pub(super) fn heard(
        &mut self,
        now: Instant,
        rank: Rank,
        instance: InstanceId,
        leaving: bool,
        timing: &Timing,
    ) -> bool {
        match self.assigned.get_mut(&rank).filter(|m| m.instance == instance) {
            Some(member) => {
                member.connected = true;
                member.leaving = leaving;
                member.watch.heard(now, timing.beat_silence);
                true
            }
            None => false,
        }
    }

    pub(super) fn is_member(&self, rank: Rank, instance: InstanceId) -> bool {
        self.assigned.get(&rank).is_some_and(|m| m.instance == instance)
    }

    pub(super) fn discount(&mut self, late: Duration) {
        self.assigned.values_mut().for_each(|m| m.watch.discount(late));
    }

    /// The first rank that was silent for too long, and whether it ever connected.
    pub(super) fn silent(&self, now: Instant) -> Option<(Rank, bool, Duration)> {
        let silent = |(rank, m): (&Rank, &Member)| Some((*rank, m.connected, m.watch.silent_for(now)?));
        self.assigned.iter().find_map(silent)
    }

    pub(super) fn leaving(&self) -> Option<Rank> {
        self.assigned.iter().find(|(_, m)| m.leaving).map(|(rank, _)| *rank)
    }
}
