//! Peers that die or stop: the others are free again by their deadline.

use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use collectives::loopback::{Loopback, Rendezvous};
use collectives::{Collective, CollectiveError, ReduceOp};
use tch::{Device, Kind, Tensor};

use crate::contract::{Scenario, assert_ended, soon};
use crate::{processes, support};

pub(crate) const SCENARIOS: &[(&str, Scenario)] =
    &[("reduce_until_it_fails", reduce_until_it_fails), ("reduce_until_aborted", reduce_until_aborted)];

fn reduce(c: &dyn Collective, deadline: Instant) -> Result<(), CollectiveError> {
    let mut x = Tensor::ones([24_576], (Kind::Float, Device::Cpu));
    c.all_reduce(&mut x, ReduceOp::Sum, deadline)?;
    assert_eq!(f64::try_from(x.sum(Kind::Double)).unwrap(), 24_576.0 * f64::from(c.world_size()));
    Ok(())
}

fn reduce_until_it_fails(c: &dyn Collective, _: Device) {
    while reduce(c, soon()).is_ok() {}
}

/// A rank that was stopped meanwhile finds the group gone instead of going on in it.
fn reduce_until_aborted(c: &dyn Collective, device: Device) {
    let error = loop {
        if let Err(error) = reduce(c, soon()) {
            break error;
        }
    };
    assert!(matches!(error, CollectiveError::Aborted { .. }), "{error:?}");
    assert_ended(c, device);
}

/// Reduces with the child, lets `strike` hit it in the middle, and returns once the deadline has told.
fn lose_the_peer(scenario: &str, strike: impl FnOnce(&mut Child)) -> (Loopback, Child) {
    let rendezvous = Rendezvous::create(2).unwrap();
    let mut child = processes::spawn(&rendezvous, 1, scenario);
    let c = Loopback::connect(&rendezvous, 0, 2, soon()).unwrap();
    for _ in 0..50 {
        reduce(&c, soon()).unwrap();
    }
    strike(&mut child);
    let (deadline, error) = loop {
        let deadline = Instant::now() + Duration::from_millis(300);
        if let Err(error) = reduce(&c, deadline) {
            break (deadline, error);
        }
    };
    let expected = CollectiveError::Timeout { op: "all_reduce", rank: 0, missing: vec![1] };
    assert_eq!(error, expected);
    assert!(Instant::now() < deadline + Duration::from_secs(1));
    assert_ended(&c, Device::Cpu);
    (c, child)
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: a signal to our own child, which has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id().cast_signed(), signal) }, 0);
}

#[test]
fn a_killed_peer_is_a_timeout_at_the_deadline() {
    for _ in 0..5 {
        let (_, mut child) = lose_the_peer("reduce_until_it_fails", |child| child.kill().unwrap());
        child.wait().unwrap();
    }
}

#[test]
fn a_stopped_peer_is_a_timeout_and_finds_the_group_ended_when_it_wakes() {
    let (_, mut child) = lose_the_peer("reduce_until_aborted", |child| signal(child, libc::SIGSTOP));
    signal(&child, libc::SIGCONT);
    processes::wait_done(&mut child);
    processes::finish(child);
}

#[test]
fn a_rank_that_leaves_frees_the_others_at_once() {
    let mut group = support::group(3);
    let leaver = group.pop().unwrap();
    let deadline = soon();
    thread::scope(|scope| {
        let blocked: Vec<_> = group.iter().map(|c| scope.spawn(move || c.barrier(deadline))).collect();
        drop(leaver);
        for rank in blocked {
            let reason = "rank 2 left the group".to_owned();
            assert_eq!(rank.join().unwrap(), Err(CollectiveError::Aborted { reason }));
        }
    });
    assert!(Instant::now() < deadline);
}

#[test]
fn peers_of_a_loopback_rank_learn_its_reason() {
    let group = support::group(2);
    let deadline = soon();
    thread::scope(|scope| {
        let blocked = scope.spawn(|| group[1].barrier(deadline));
        group[0].abort("no memory: 3 GiB");
        let reason = "rank 0: no memory: 3 GiB".to_owned();
        assert_eq!(blocked.join().unwrap(), Err(CollectiveError::Aborted { reason }));
    });
    assert!(Instant::now() < deadline);
}

#[test]
fn a_long_reason_is_cut_and_not_lost() {
    let group = support::group(2);
    group[0].abort(&"ö".repeat(1000));
    let Err(CollectiveError::Aborted { reason }) = group[1].barrier(soon()) else { panic!("not aborted") };
    assert!(reason.starts_with("rank 0: ööö") && reason.chars().count() > 200);
}
