//! Two real processes: the leader here, stage0 as this test binary again.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::{env, io};

use contract::Reason;
use contract::tensor::{TensorKey, TensorSpec};
use latents::LatentLink;
use latents::shm;

use crate::contract_of_links::{KEY, picture, prefix, rings};

const LINK: &str = "LINK_TEST_DESCRIPTOR";
const ORPHAN: &str = "LINK_TEST_ORPHAN";
const NUMEL: i64 = 100_000;
/// Before each spec on standard output, which the test harness writes to as well.
const SPEC: &str = "spec ";

fn again(test: &str, key: &str, value: &str) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(key, value)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn next_spec(lines: &mut Lines<BufReader<ChildStdout>>) -> TensorSpec {
    let line = lines.find_map(|line| Some(line.unwrap().split_once(SPEC)?.1.to_owned()));
    serde_json::from_str(&line.unwrap()).unwrap()
}

/// stage0: writes pictures 0, 1, ... and expects each of them back doubled.
#[test]
fn stage0() {
    let Ok(descriptor) = env::var(LINK) else { return };
    let mut link = shm::open(&serde_json::from_str(&descriptor).unwrap()).unwrap();
    let mut replies = io::stdin().lines();
    for write in 0.. {
        let spec = link.write(KEY, &picture(write, NUMEL)).unwrap();
        println!("\n{SPEC}{}", serde_json::to_string(&spec).unwrap());
        let Some(reply) = replies.next() else { break };
        let reply: TensorSpec = serde_json::from_str(&reply.unwrap()).unwrap();
        assert!(link.read(&reply).unwrap().equal(&picture(2 * write, NUMEL)));
        link.release(reply.slot, reply.generation).unwrap();
    }
}

#[test]
fn tensors_go_both_ways_between_processes() {
    let (mut leader, descriptor) = shm::create(&rings(&prefix("two"), 2, 2, 4 * NUMEL as u64, 5)).unwrap();
    let mut child = again("processes::stage0", LINK, &serde_json::to_string(&descriptor).unwrap());
    let mut specs = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut replies = child.stdin.take().unwrap();
    for write in 0..100 {
        let spec = next_spec(&mut specs);
        let tensor = leader.read(&spec).unwrap();
        assert!(tensor.equal(&picture(write, NUMEL)));
        leader.release(spec.slot, spec.generation).unwrap();
        let reply = leader.write(TensorKey::LatentsOut, &(tensor * 2)).unwrap();
        writeln!(replies, "{}", serde_json::to_string(&reply).unwrap()).unwrap();
    }
    next_spec(&mut specs);
    drop(replies);
    assert!(child.wait().unwrap().success());
    assert_eq!(leader.free_slots(), 2);
    assert_eq!(leader.write(TensorKey::LatentsOut, &picture(0, 8)).unwrap_err().reason, Reason::Fenced);
}

#[test]
fn a_killed_stage0_leaves_a_link_that_fails_nobody_and_a_new_one_knows_none_of_its_specs() {
    let (mut leader, descriptor) = shm::create(&rings(&prefix("two"), 2, 2, 4 * NUMEL as u64, 1)).unwrap();
    let mut child = again("processes::stage0", LINK, &serde_json::to_string(&descriptor).unwrap());
    let spec = next_spec(&mut BufReader::new(child.stdout.take().unwrap()).lines());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(leader.read(&spec).unwrap().equal(&picture(0, NUMEL)));
    let (mut next, descriptor) = shm::create(&rings(&prefix("two"), 2, 2, 4 * NUMEL as u64, 2)).unwrap();
    let _stage0 = shm::open(&descriptor).unwrap();
    assert_eq!(next.read(&spec).unwrap_err().reason, Reason::StaleSlot);
}

/// A leader that is killed between making a link and handing it over.
#[test]
fn what_a_killed_leader_left_is_swept() {
    if let Ok(prefix) = env::var(ORPHAN) {
        let _left = shm::create(&rings(&prefix, 1, 1, 64, 1)).unwrap();
        std::process::abort();
    }
    let prefix = prefix("sweep");
    let (_alive, descriptor) = shm::create(&rings(&prefix, 1, 1, 64, 2)).unwrap();
    let mut child = again("processes::what_a_killed_leader_left_is_swept", ORPHAN, &prefix);
    assert!(!child.wait().unwrap().success());
    assert_eq!(latents::remove_stale(&prefix).unwrap(), 1);
    assert!(shm::open(&descriptor).is_ok());
}
