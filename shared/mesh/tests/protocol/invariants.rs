//! Each invariant lets the good pass and names what is wrong with the bad.

use std::time::{Duration, Instant};

use contract::envelope::{Lease, ResultV1};
use contract::tp::PlanId;
use contract::{
    CacheEpoch, CallId, Digest, InstanceId, LeaseEpoch, LinkSlot, MeshEpoch, Rank, Reason, SessionId,
};
use mesh::invariants::{
    Violation, call_ends, calls_only_grow, canary_is_the_first, drain_ends, epochs_only_grow,
    go_before_collective, no_slot_is_read_and_written, observed_equals_expected, one_leader_per_epoch,
    one_lease_is_obeyed, ranks_are_distinct, result_is_current,
};

use crate::fixtures;

/// Of call 1 in cache epoch 2 and mesh epoch 7, with 2 generator forwards.
fn result() -> ResultV1 {
    fixtures::result(CallId(1), MeshEpoch(7), &fixtures::infer(SessionId::random(), 2, 0))
}

#[test]
fn the_good_passes_and_the_bad_is_named() {
    let (a, b) = (Digest::of(&[b"a"]), Digest::of(&[b"b"]));
    let (one, two) = (InstanceId::random(), InstanceId::random());
    let lease = |epoch| Lease { controller: one, epoch: LeaseEpoch(epoch) };
    let now = Instant::now();
    let second = Duration::from_secs(1);
    let just_late = now + second + Duration::from_millis(1);
    let slots = |all: &[u32]| all.iter().copied().map(LinkSlot).collect::<Vec<_>>();
    let epoch = MeshEpoch(7);
    let good = [
        go_before_collective((PlanId(1), &a), (PlanId(1), &a)),
        calls_only_grow(CallId(1), CallId(2)),
        epochs_only_grow(None, epoch),
        epochs_only_grow(Some(MeshEpoch(6)), epoch),
        one_lease_is_obeyed(lease(1), Some(lease(1))),
        observed_equals_expected(3, 3, 3),
        canary_is_the_first(None, &a),
        canary_is_the_first(Some(&a), &a),
        result_is_current(&result(), epoch, CacheEpoch(2), 2),
        ranks_are_distinct(&[Rank(1), Rank(2)]),
        one_leader_per_epoch(epoch, None, one),
        one_leader_per_epoch(epoch, Some(one), one),
        no_slot_is_read_and_written(&slots(&[0, 1]), &slots(&[2])),
        call_ends(now + second, CallId(1), now, second),
        drain_ends(now + second, now, second),
    ];
    assert!(good.iter().all(Result::is_ok), "{good:?}");
    let bad: [(Result<(), Violation>, Reason, &str); 16] = [
        (go_before_collective((PlanId(1), &a), (PlanId(2), &a)), Reason::Internal, "plan 2"),
        (go_before_collective((PlanId(1), &a), (PlanId(1), &b)), Reason::Internal, b.as_str()),
        (calls_only_grow(CallId(2), CallId(2)), Reason::Internal, "call id 2 after 2"),
        (epochs_only_grow(Some(epoch), epoch), Reason::Internal, "mesh epoch 7 after 7"),
        (one_lease_is_obeyed(lease(1), Some(lease(2))), Reason::Fenced, "lease 2 is in force"),
        (one_lease_is_obeyed(lease(1), None), Reason::Fenced, "lease none is in force"),
        (observed_equals_expected(3, 2, 3), Reason::CountMismatch, "2 to 3"),
        (canary_is_the_first(Some(&a), &b), Reason::DigestMismatch, b.as_str()),
        (result_is_current(&result(), MeshEpoch(8), CacheEpoch(2), 2), Reason::StaleEpoch, "mesh epoch 7"),
        (result_is_current(&result(), epoch, CacheEpoch(3), 2), Reason::StaleEpoch, "cache epoch 2"),
        (result_is_current(&result(), epoch, CacheEpoch(2), 4), Reason::CountMismatch, "4 are expected"),
        (ranks_are_distinct(&[Rank(1), Rank(1)]), Reason::Internal, "rank 1"),
        (one_leader_per_epoch(epoch, Some(one), two), Reason::Fenced, "claims it as well"),
        (no_slot_is_read_and_written(&slots(&[0, 1]), &slots(&[2, 1])), Reason::SlotBusy, "slot 1"),
        (call_ends(just_late, CallId(4), now, second), Reason::BudgetSpent, "call 4"),
        (drain_ends(just_late, now, second), Reason::Draining, "1000 ms"),
    ];
    for (outcome, reason, text) in bad {
        let violation = outcome.unwrap_err();
        assert_eq!(violation.reason, reason);
        assert!(violation.text.contains(text), "{}", violation.text);
    }
}
