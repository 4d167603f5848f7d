//! What every `Collective` owes its callers, written once as what each rank does (single program, many ranks). A
//! transport's tests make N ranks, as threads or processes, and let each run a scenario; a broken promise panics.
//!
//! Values are small integers, so that sums are exact in every dtype and in any order a transport may add them.

use std::thread;
use std::time::{Duration, Instant};

use collectives::{Collective, CollectiveError, ReduceOp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tch::{Device, Kind, Tensor};

/// What one rank does with its end of a fresh group, with tensors on the given device.
pub(crate) type Scenario = fn(&dyn Collective, Device);

/// Scenarios that leave the group usable.
pub(crate) const HEALTHY: &[(&str, Scenario)] = &[
    ("every_dtype_and_op_reduces", every_dtype_and_op_reduces),
    ("every_root_broadcasts", every_root_broadcasts),
    ("a_random_program_in_random_arrival_order", a_random_program_in_random_arrival_order),
    ("bad_tensors_are_refused_and_cost_nothing", bad_tensors_are_refused_and_cost_nothing),
];

/// Scenarios that end the group, so that each needs a fresh one.
pub(crate) const FAULTS: &[(&str, Scenario)] = &[
    ("a_missing_rank_is_a_timeout_at_the_deadline", a_missing_rank_is_a_timeout_at_the_deadline),
    ("an_abort_frees_a_blocked_call_of_its_own_rank", an_abort_frees_a_blocked_call_of_its_own_rank),
    ("an_abort_of_one_rank_ends_the_others", an_abort_of_one_rank_ends_the_others),
];

const KINDS: [Kind; 4] = [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Int64];
const OPS: [ReduceOp; 3] = [ReduceOp::Sum, ReduceOp::Min, ReduceOp::Max];
/// Up to several pieces of any transport's buffers.
const NUMELS: [i64; 7] = [0, 1, 7, 24_576, 65_536, 65_537, 300_001];
const SLACK: Duration = Duration::from_secs(1);

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// The same on every rank: what `rank` contributes to call `salt`.
fn values(rank: u32, salt: u64, numel: i64) -> Vec<i64> {
    let mut rng = StdRng::seed_from_u64(salt << 8 | u64::from(rank));
    (0..numel).map(|_| rng.random_range(-16..=15)).collect()
}

fn tensor(values: &[i64], kind: Kind, device: Device) -> Tensor {
    Tensor::from_slice(values).to_kind(kind).to_device(device)
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_device(Device::Cpu).to_kind(Kind::Int64)).unwrap()
}

fn reduced(world: u32, op: ReduceOp, salt: u64, numel: i64) -> Vec<i64> {
    let mut all = (0..world).map(|rank| values(rank, salt, numel));
    let first = all.next().unwrap();
    all.fold(first, |sum, next| {
        let combine = |(a, b): (i64, i64)| match op {
            ReduceOp::Sum => a + b,
            ReduceOp::Min => a.min(b),
            ReduceOp::Max => a.max(b),
        };
        sum.into_iter().zip(next).map(combine).collect()
    })
}

fn check_reduce(c: &dyn Collective, device: Device, kind: Kind, op: ReduceOp, salt: u64, numel: i64) {
    let mut x = tensor(&values(c.rank(), salt, numel), kind, device);
    c.all_reduce(&mut x, op, soon()).unwrap();
    assert_eq!(integers(&x), reduced(c.world_size(), op, salt, numel), "{kind:?} {op:?} x {numel}");
}

fn check_broadcast(c: &dyn Collective, device: Device, kind: Kind, root: u32, salt: u64, numel: i64) {
    let mut x = tensor(&values(c.rank(), salt, numel), kind, device);
    c.broadcast(&mut x, root, soon()).unwrap();
    assert_eq!(integers(&x), values(root, salt, numel), "{kind:?} from {root} x {numel}");
}

fn every_dtype_and_op_reduces(c: &dyn Collective, device: Device) {
    for (salt, kind) in (0..).zip(KINDS) {
        for op in OPS {
            for numel in NUMELS {
                check_reduce(c, device, kind, op, salt, numel);
            }
        }
    }
}

fn every_root_broadcasts(c: &dyn Collective, device: Device) {
    for root in 0..c.world_size() {
        for kind in KINDS {
            for numel in NUMELS {
                check_broadcast(c, device, kind, root, 99, numel);
            }
        }
    }
}

fn a_random_program_in_random_arrival_order(c: &dyn Collective, device: Device) {
    let mut program = StdRng::seed_from_u64(7);
    let mut arrival = StdRng::seed_from_u64(1000 + u64::from(c.rank()));
    for salt in 0..300 {
        // Mostly in step, sometimes late enough that the peers have gone to sleep.
        let late = if arrival.random_ratio(1, 10) { 2_000 } else { 50 };
        let until = Instant::now() + Duration::from_micros(arrival.random_range(0..late));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let kind = KINDS[program.random_range(0..KINDS.len())];
        let numel = NUMELS[program.random_range(0..5)];
        match program.random_range(0..4) {
            0 => c.barrier(soon()).unwrap(),
            1 => check_broadcast(c, device, kind, program.random_range(0..c.world_size()), salt, numel),
            _ => check_reduce(c, device, kind, OPS[program.random_range(0..3)], salt, numel),
        }
    }
}

fn bad_tensors_are_refused_and_cost_nothing(c: &dyn Collective, device: Device) {
    let refused = |result: Result<(), CollectiveError>| {
        assert!(matches!(result, Err(CollectiveError::BadTensor(_))), "{result:?}");
    };
    let mut strided = Tensor::zeros([4, 4], (Kind::Float, device)).transpose(0, 1);
    refused(c.all_reduce(&mut strided, ReduceOp::Sum, soon()));
    let mut booleans = Tensor::zeros([4], (Kind::Bool, device));
    refused(c.all_reduce(&mut booleans, ReduceOp::Sum, soon()));
    let mut fine = Tensor::zeros([4], (Kind::Float, device));
    refused(c.broadcast(&mut fine, c.world_size(), soon()));
    check_reduce(c, device, Kind::Float, ReduceOp::Sum, 5, 24_576);
}

/// After any fault: at once, on every call.
pub(crate) fn assert_ended(c: &dyn Collective, device: Device) {
    let mut x = Tensor::zeros([8], (Kind::Float, device));
    for result in
        [c.barrier(soon()), c.all_reduce(&mut x, ReduceOp::Sum, soon()), c.broadcast(&mut x, 0, soon())]
    {
        assert!(matches!(result, Err(CollectiveError::Aborted { .. })), "{result:?}");
    }
}

fn a_missing_rank_is_a_timeout_at_the_deadline(c: &dyn Collective, device: Device) {
    c.barrier(soon()).unwrap();
    if c.rank() == 0 {
        return;
    }
    let deadline = Instant::now() + Duration::from_millis(200);
    let mut x = Tensor::zeros([1000], (Kind::Float, device));
    match c.all_reduce(&mut x, ReduceOp::Sum, deadline) {
        Err(CollectiveError::Timeout { op: "all_reduce", rank, missing }) => {
            assert_eq!(rank, c.rank());
            assert!(missing.contains(&0));
            assert!(Instant::now() >= deadline);
        }
        // Another rank's deadline was earlier.
        Err(CollectiveError::Aborted { .. }) if c.world_size() > 2 => {}
        other => panic!("{other:?}"),
    }
    assert!(Instant::now() < deadline + SLACK);
    assert_ended(c, device);
}

fn an_abort_frees_a_blocked_call_of_its_own_rank(c: &dyn Collective, device: Device) {
    c.barrier(soon()).unwrap();
    if c.rank() == 0 {
        return;
    }
    let deadline = soon();
    thread::scope(|scope| {
        let blocked = scope.spawn(|| c.barrier(deadline));
        c.abort("the watchdog says so");
        c.abort("a second reason is not news");
        assert!(matches!(blocked.join().unwrap(), Err(CollectiveError::Aborted { .. })));
    });
    assert!(Instant::now() < deadline);
    assert_ended(c, device);
}

fn an_abort_of_one_rank_ends_the_others(c: &dyn Collective, device: Device) {
    c.barrier(soon()).unwrap();
    if c.rank() == 0 {
        c.abort("out of memory");
    } else {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut x = Tensor::zeros([100_000], (Kind::Float, device));
        match c.all_reduce(&mut x, ReduceOp::Sum, deadline) {
            Err(
                CollectiveError::Aborted { .. } | CollectiveError::Timeout { .. } | CollectiveError::Io(_),
            ) => {}
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < deadline + SLACK);
    }
    assert_ended(c, device);
}
