//! Ranks as child processes: this test binary again, told by its environment which rank and scenario it is.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use collectives::loopback::{Loopback, Rendezvous};
use tch::Device;

use crate::contract::{FAULTS, HEALTHY, Scenario, soon};
use crate::{faults, lock_step};

const SCENARIO: &str = "LOOPBACK_TEST_SCENARIO";
const RANK: &str = "LOOPBACK_TEST_RANK";
const RENDEZVOUS: &str = "LOOPBACK_TEST_RENDEZVOUS";
const DONE: &str = "scenario done";

pub(crate) fn spawn(rendezvous: &Rendezvous, rank: u32, scenario: &str) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "processes::child", "--nocapture", "--test-threads=1"])
        .env(SCENARIO, scenario)
        .env(RANK, rank.to_string())
        .env(RENDEZVOUS, hex::encode(rendezvous.to_bytes()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Rank 0 here, the others as children; each runs the scenario, and all stay until all are done.
pub(crate) fn run(world: u32, scenario: &str) {
    let rendezvous = Rendezvous::create(world).unwrap();
    let mut children: Vec<Child> = (1..world).map(|rank| spawn(&rendezvous, rank, scenario)).collect();
    let c = Loopback::connect(&rendezvous, 0, world, soon()).unwrap();
    find(scenario)(&c, Device::Cpu);
    for child in &mut children {
        wait_done(child);
    }
    children.into_iter().for_each(finish);
}

/// Until the child says that its scenario is over; it keeps its end of the group.
pub(crate) fn wait_done(child: &mut Child) {
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let done = lines.map_while(Result::ok).any(|line| line.ends_with(DONE));
    assert!(done, "a child failed before its scenario was done");
}

/// Lets the child go and asks for its verdict.
pub(crate) fn finish(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

fn find(name: &str) -> Scenario {
    let all = [HEALTHY, FAULTS, faults::SCENARIOS, lock_step::SCENARIOS].concat();
    all.into_iter().find(|(known, _)| *known == name).unwrap().1
}

#[test]
fn child() {
    let Ok(scenario) = env::var(SCENARIO) else { return };
    let rank = env::var(RANK).unwrap().parse().unwrap();
    let bytes = hex::decode(env::var(RENDEZVOUS).unwrap()).unwrap();
    let rendezvous = Rendezvous::from_bytes(&bytes).unwrap();
    let c = Loopback::connect(&rendezvous, rank, rendezvous.world_size(), soon()).unwrap();
    find(&scenario)(&c, Device::Cpu);
    println!("{DONE}");
    // The parent closes our input when every rank is done.
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).unwrap();
}
