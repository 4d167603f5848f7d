//! One environment configures all services: each takes what is its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeSet;
use std::process::Command;

use runtime::config::SECTIONS;
use system_tests::cell::layout;

const SERVICES: [&str; 4] = ["gateway", "stage0", "mesh-leader", "tp-worker"];

/// What a service says of itself with this environment.
fn printed(service: &str, env: &[(&str, &str)]) -> String {
    let mut command = Command::new(layout().binaries().join(service));
    let output = command.arg("--print-config").envs(env.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{service}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn what_one_service_is_told_does_not_stop_the_others() {
    // As for `cargo xtask up`, which starts them all with its own environment.
    let env = [
        ("KINEMESH_DEVICE__KIND", "cpu"),
        ("KINEMESH_GATEWAY__MAX_SESSIONS", "77"),
        ("KINEMESH_MESH__SESSION_SLOTS", "7"),
        ("KINEMESH_STAGE0__CALL_BUDGET_FLOOR_MS", "7777"),
    ];
    for (service, own) in [
        ("gateway", "max_sessions = 77"),
        ("mesh-leader", "session_slots = 7"),
        ("tp-worker", "session_slots = 7"),
        ("stage0", "call_budget_floor_ms = 7777"),
    ] {
        let text = printed(service, &env);
        assert!(text.contains(own), "{service}: {text}");
    }
}

#[test]
fn all_sections_are_those_of_some_service() {
    let sections = |service: &&str| -> Vec<String> {
        let text = printed(service, &[]);
        let headings = text.lines().filter_map(|line| line.strip_prefix('[')?.split_once(']'));
        headings.filter(|(name, _)| !name.contains('.')).map(|(name, _)| name.to_owned()).collect()
    };
    let found: BTreeSet<String> = SERVICES.iter().flat_map(sections).collect();
    assert_eq!(found, SECTIONS.map(str::to_owned).into());
}
