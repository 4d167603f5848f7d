//! Watches a cell with the invariants that production checks, from where nobody in production can stand: over all
//! processes at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use contract::envelope::{Infer, Lease, ResultV1};
use contract::tp::{Plan, PlanId};
use contract::{CacheEpoch, CallId, Digest, InstanceId, LinkSlot, MeshEpoch, Rank};
use mesh::invariants::{self, Violation};
use mesh::{Ticket, Timing};

use super::Node;

/// Which invariant was broken first, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) invariant: &'static str,
    pub(crate) how: String,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Judge {
    broken: Option<Broken>,
    leads: Option<(MeshEpoch, InstanceId)>,
    /// Ranks that acknowledged the newest plan.
    acks: Option<(MeshEpoch, PlanId, BTreeSet<Rank>)>,
    /// The newest `go` of each epoch that some rank is still in.
    gone: BTreeMap<MeshEpoch, (PlanId, Digest)>,
    lease: Option<Lease>,
    /// What the leader copies out of a link.
    reading: Option<(Lease, Vec<LinkSlot>)>,
    calls: BTreeMap<Ticket, Call>,
}

#[derive(Clone, Debug)]
struct Call {
    controller: usize,
    deadline: Instant,
    cache_epoch: CacheEpoch,
    expected: u32,
}

impl Judge {
    pub(crate) fn broken(&self) -> Option<&Broken> {
        self.broken.as_ref()
    }

    fn check(&mut self, invariant: &'static str, outcome: Result<(), Violation>) {
        if let (Err(violation), None) = (outcome, &self.broken) {
            self.broken = Some(Broken { invariant, how: violation.text });
        }
    }

    fn expect(&mut self, invariant: &'static str, holds: bool, how: &str) {
        if !holds && self.broken.is_none() {
            self.broken = Some(Broken { invariant, how: how.to_owned() });
        }
    }

    pub(super) fn leads(&mut self, epoch: MeshEpoch, leader: InstanceId) {
        let known = self.leads.filter(|(led, _)| *led == epoch).map(|(_, leader)| leader);
        self.check("one leader per epoch", invariants::one_leader_per_epoch(epoch, known, leader));
        if self.leads.is_none_or(|(led, _)| led < epoch) {
            self.leads = Some((epoch, leader));
        }
    }

    pub(super) fn acknowledged(&mut self, epoch: MeshEpoch, plan: PlanId, rank: Rank) {
        match &mut self.acks {
            Some((e, p, ranks)) if (*e, *p) == (epoch, plan) => {
                ranks.insert(rank);
            }
            Some((e, p, _)) if (*e, *p) > (epoch, plan) => {}
            acks => *acks = Some((epoch, plan, BTreeSet::from([rank]))),
        }
    }

    /// The leader runs: every rank said yes to exactly this plan.
    pub(super) fn leader_runs(&mut self, plan: &Plan, workers: usize) {
        let acks = match &self.acks {
            Some((e, p, ranks)) if (*e, *p) == (plan.mesh_epoch, plan.plan_id) => ranks.len(),
            _ => 0,
        };
        self.expect("go before collective", acks == workers, "go before every rank acknowledged");
    }

    pub(super) fn goes(&mut self, epoch: MeshEpoch, plan: PlanId, digest: &Digest, served: &[MeshEpoch]) {
        self.gone.retain(|epoch, _| served.contains(epoch));
        self.gone.insert(epoch, (plan, digest.clone()));
    }

    pub(super) fn worker_runs(&mut self, plan: &Plan) {
        let digest = plan.digest().unwrap();
        let none = (PlanId(0), Digest::of(&[]));
        let (id, gone) = self.gone.get(&plan.mesh_epoch).unwrap_or(&none);
        let outcome = invariants::go_before_collective((plan.plan_id, &digest), (*id, gone));
        self.check("go before collective", outcome);
    }

    pub(super) fn leased(&mut self, lease: Option<Lease>) {
        if let (Some(old), Some(new)) = (self.lease, lease) {
            let grows = old.epoch < new.epoch;
            self.expect("one lease is obeyed", grows, "a lease was granted that is not newer");
        }
        self.lease = lease;
    }

    pub(super) fn obeys(&mut self, lease: Lease) {
        self.check("one lease is obeyed", invariants::one_lease_is_obeyed(lease, self.lease));
    }

    pub(super) fn reads(&mut self, lease: Lease, infer: &Infer) {
        self.reading = Some((lease, slots(infer)));
    }

    pub(super) fn has_read(&mut self) {
        self.reading = None;
    }

    pub(super) fn asked(
        &mut self,
        ticket: Ticket,
        controller: usize,
        lease: Lease,
        infer: &Infer,
        deadline: Instant,
    ) {
        let reading = self.reading.iter().filter(|(of, _)| *of == lease);
        let reading: Vec<LinkSlot> = reading.flat_map(|(_, slots)| slots.clone()).collect();
        let outcome = invariants::no_slot_is_read_and_written(&reading, &slots(infer));
        self.check("no slot is read and written", outcome);
        let (cache_epoch, expected) = (infer.cache_epoch, infer.expected_generator_calls);
        self.calls.insert(ticket, Call { controller, deadline, cache_epoch, expected });
    }

    /// A call ended well at stage0.
    pub(super) fn accepted(&mut self, ticket: Ticket, mesh_epoch: Option<MeshEpoch>, result: &ResultV1) {
        let Some(call) = self.calls.get(&ticket) else { return };
        let (expected, observed) = (call.expected, result.observed_generator_calls);
        let epoch = mesh_epoch.unwrap_or_default();
        let current = invariants::result_is_current(result, epoch, call.cache_epoch, expected);
        let counted = invariants::observed_equals_expected(expected, observed, observed);
        self.check("observed equals expected", counted);
        self.check("result is current", current);
    }

    pub(super) fn ended(&mut self, ticket: Ticket) {
        let known = self.calls.remove(&ticket).is_some();
        self.expect("every call ends", known, "a call ended twice");
    }

    pub(super) fn leader_died(&mut self) {
        self.lease = None;
        self.reading = None;
    }

    pub(super) fn controller_died(&mut self, c: usize) {
        self.calls.retain(|_, call| call.controller != c);
    }

    pub(super) fn controller_woke(&mut self, c: usize, now: Instant) {
        for call in self.calls.values_mut().filter(|call| call.controller == c) {
            call.deadline = call.deadline.max(now);
        }
    }

    /// What the processes that run owe by now.
    pub(super) fn on_time(
        &mut self,
        now: Instant,
        timing: &Timing,
        running: &[Node],
        stopping: &[(Node, Instant)],
    ) {
        let owed = self.calls.values().filter(|call| running.contains(&Node::Controller(call.controller)));
        let ends: Vec<_> =
            owed.map(|call| invariants::call_ends(now, CallId(0), call.deadline, timing.control)).collect();
        ends.into_iter().for_each(|outcome| self.check("every call ends", outcome));
        for (_, since) in stopping {
            let outcome = invariants::drain_ends(now, *since, timing.drain + timing.tick);
            self.check("drain ends", outcome);
        }
    }
}

fn slots(infer: &Infer) -> Vec<LinkSlot> {
    infer.tensors.iter().map(|spec| spec.slot).collect()
}
