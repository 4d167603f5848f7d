//! Ranks that enter different calls get an error that names both, never each other's bytes.

use collectives::{Collective, CollectiveError, ReduceOp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tch::{Device, Kind, Tensor};

use crate::contract::{Scenario, assert_ended, soon};
use crate::{processes, support};

pub(crate) const SCENARIOS: &[(&str, Scenario)] =
    &[("wrong_op", wrong_op), ("sums_run_in_rank_order", sums_run_in_rank_order)];

type Step = fn(&dyn Collective) -> Result<(), CollectiveError>;

fn zeros(numel: i64, kind: Kind) -> Tensor {
    Tensor::zeros([numel], (kind, Device::Cpu))
}

const STEPS: [Step; 6] = [
    |c| c.all_reduce(&mut zeros(1000, Kind::Float), ReduceOp::Sum, soon()),
    |c| c.all_reduce(&mut zeros(1000, Kind::Float), ReduceOp::Max, soon()),
    |c| c.all_reduce(&mut zeros(1000, Kind::Double), ReduceOp::Sum, soon()),
    |c| c.all_reduce(&mut zeros(1_000_000, Kind::Float), ReduceOp::Sum, soon()),
    |c| c.broadcast(&mut zeros(1000, Kind::Float), 0, soon()),
    |c| c.barrier(soon()),
];

fn assert_mismatch(results: &[Result<(), CollectiveError>]) {
    let mismatch = |r: &&Result<(), _>| matches!(r, Err(CollectiveError::Mismatch { .. }));
    assert!(results.iter().any(|r| mismatch(&r)), "{results:?}");
    let ended = |r: &Result<(), _>| mismatch(&r) || matches!(r, Err(CollectiveError::Aborted { .. }));
    assert!(results.iter().all(ended), "{results:?}");
}

fn in_step(group: &[collectives::loopback::Loopback], step: impl Fn(u32) -> Step) {
    let results: Vec<_> = std::thread::scope(|scope| {
        let ranks: Vec<_> = group.iter().map(|c| (c, step(c.rank()))).collect();
        let ranks: Vec<_> = ranks.into_iter().map(|(c, step)| scope.spawn(move || step(c))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    assert_mismatch(&results);
    group.iter().for_each(|c| assert_ended(c, Device::Cpu));
}

#[test]
fn different_calls_are_a_mismatch_on_all_ranks() {
    for a in 0..STEPS.len() {
        for b in (0..STEPS.len()).filter(|b| *b != a) {
            in_step(&support::group(2), |rank| STEPS[if rank == 0 { a } else { b }]);
        }
    }
    in_step(&support::group(3), |rank| STEPS[if rank == 2 { 0 } else { 5 }]);
}

#[test]
fn different_roots_are_a_mismatch() {
    in_step(&support::group(2), |rank| {
        if rank == 0 {
            |c| c.broadcast(&mut zeros(8, Kind::Float), 0, soon())
        } else {
            |c| c.broadcast(&mut zeros(8, Kind::Float), 1, soon())
        }
    });
}

#[test]
fn the_error_names_both_calls() {
    let group = support::group(2);
    let text = std::thread::scope(|scope| {
        let peer = scope.spawn(|| group[1].barrier(soon()));
        let ours = STEPS[0](&group[0]);
        let all = [ours, peer.join().unwrap()];
        all.into_iter()
            .find(|r| matches!(r, Err(CollectiveError::Mismatch { .. })))
            .unwrap()
            .unwrap_err()
            .to_string()
    });
    assert!(
        text.contains("call 1 all_reduce(sum) of 1000 x f32") && text.contains("call 1 barrier"),
        "{text}"
    );
}

#[test]
fn overlapping_calls_of_one_rank_are_a_mismatch() {
    let group = support::group(2);
    let results: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..2).map(|_| scope.spawn(|| group[0].barrier(soon()))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_mismatch(&results);
}

fn wrong_op(c: &dyn Collective, device: Device) {
    let result = STEPS[if c.rank() == 0 { 0 } else { 1 }](c);
    assert!(
        matches!(result, Err(CollectiveError::Mismatch { .. } | CollectiveError::Aborted { .. })),
        "{result:?}"
    );
    assert_ended(c, device);
}

/// Floats whose sum depends on the order: every rank must get the bits of rank 0 + rank 1 + ...
fn sums_run_in_rank_order(c: &dyn Collective, device: Device) {
    let numel = 200_003;
    let values = |rank| {
        let mut rng = StdRng::seed_from_u64(rank);
        let wide = |_| rng.random_range(-1.0_f32..1.0) * f32::powi(2.0, rng.random_range(-20..20));
        Tensor::from_slice(&(0..numel).map(wide).collect::<Vec<_>>()).to_device(device)
    };
    let world = u64::from(c.world_size());
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
        let wide = if kind == Kind::BFloat16 { Kind::Float } else { kind };
        let share = |rank| values(rank).to_kind(kind);
        let expected = (1..world).fold(share(0).to_kind(wide), |sum, rank| sum + share(rank).to_kind(wide));
        let mut x = share(u64::from(c.rank()));
        c.all_reduce(&mut x, ReduceOp::Sum, soon()).unwrap();
        assert!(x.equal(&expected.to_kind(kind)), "{kind:?}");
    }
}

#[test]
fn sums_are_those_of_the_rank_order_bit_for_bit() {
    support::threads(4, sums_run_in_rank_order);
    processes::run(3, "sums_run_in_rank_order");
}

#[test]
fn processes_notice_a_broken_lock_step() {
    processes::run(2, "wrong_op");
}
