//! The loopback transport against the contract of every `Collective`, with threads and with real processes, and what
//! it promises beyond it.
#![allow(clippy::unwrap_used, reason = "a test helper that cannot go on panics")]

#[path = "../contract/mod.rs"]
mod contract;
mod faults;
mod lock_step;
mod processes;
mod rendezvous;
mod support;

use crate::contract::{FAULTS, HEALTHY};

#[test]
fn threads_keep_the_contract() {
    for world in [1, 2, 3, 4] {
        support::threads(world, |c, device| HEALTHY.iter().for_each(|(_, scenario)| scenario(c, device)));
    }
}

#[test]
fn threads_keep_the_contract_in_faults() {
    for world in [2, 4] {
        for (_, scenario) in FAULTS {
            support::threads(world, *scenario);
        }
    }
}

#[test]
fn processes_keep_the_contract() {
    for (name, _) in HEALTHY {
        processes::run(2, name);
    }
    processes::run(4, HEALTHY[2].0);
}

#[test]
fn processes_keep_the_contract_in_faults() {
    for (name, _) in FAULTS {
        processes::run(2, name);
        processes::run(3, name);
    }
}
