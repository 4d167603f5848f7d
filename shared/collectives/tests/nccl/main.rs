//! NCCL against the contract of every `Collective`, between processes that share one GPU, and what it promises beyond it:
//! groups form again and again in processes that live on, and a killed rank keeps nobody.
//!
//! Ranks that share a GPU are something NCCL refuses, unless each believes itself on a host of its own (`NCCL_HOSTID`):
//! slow, and right for a test.
#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "../contract/mod.rs"]
mod contract;
mod rank;
mod ranks;

use std::time::{Duration, Instant};

use crate::contract::{FAULTS, HEALTHY};
use crate::ranks::Ranks;

/// Two processes load libtorch and meet; nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn two_ranks_keep_the_contract() {
    let mut ranks = Ranks::start(2, PATIENCE);
    ranks.meet();
    for (name, _) in HEALTHY {
        ranks.all_run(name);
    }
    ranks.finish();
}

#[test]
fn every_fault_ends_as_the_contract_says_and_the_same_processes_meet_again() {
    let mut ranks = Ranks::start(2, PATIENCE);
    for (name, _) in FAULTS {
        ranks.meet();
        ranks.all_run(name);
        ranks.all_run("the_device_is_free");
    }
    ranks.meet();
    ranks.all_run(HEALTHY[0].0);
    ranks.finish();
}

#[test]
fn a_killed_rank_keeps_nobody_and_another_process_takes_its_place() {
    let mut ranks = Ranks::start(2, PATIENCE);
    ranks.meet();
    ranks.all_run(HEALTHY[1].0);
    ranks.tell(0, "a_call_whose_peer_is_killed");
    ranks.hear(0, "calling");
    ranks.kill(1);
    let killed = Instant::now();
    ranks.hear(0, "done a_call_whose_peer_is_killed");
    println!("a call ended {} ms after its peer was killed", killed.elapsed().as_millis());
    ranks.replace(1);
    ranks.meet();
    ranks.all_run(HEALTHY[0].0);
    ranks.finish();
}

#[test]
fn a_rank_that_never_comes_fails_the_meeting_by_the_deadline() {
    let mut ranks = Ranks::start(2, PATIENCE);
    ranks.tell(0, "a_meeting_that_nobody_comes_to");
    ranks.hear(0, "done a_meeting_that_nobody_comes_to");
    ranks.meet();
    ranks.all_run(HEALTHY[0].0);
    ranks.finish();
}

#[test]
fn forming_again_and_again_leaks_no_device_memory() {
    let mut ranks = Ranks::start(2, PATIENCE);
    let mut free = Vec::new();
    for _ in 0..20 {
        ranks.meet();
        ranks.all_run("an_abort_of_one_rank_ends_the_others");
        ranks.all_run("the_device_is_free");
        ranks.tell(0, "free_memory");
        free.push(ranks.hear(0, "free ").parse::<i64>().unwrap());
    }
    // The first rounds fill caches of the driver.
    let lost = (free[4] - free[19]) / (1 << 20);
    println!("20 rounds of forming and aborting: {lost} MiB less free memory than after the fifth");
    assert!(lost < 16, "{free:?}");
    ranks.finish();
}
