//! How a real process ends.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Cargo builds examples beside the tests.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples/wedged")
}

fn start(how: &str, grace_ms: u64) -> Child {
    Command::new(example())
        .env("KINEMESH_DEMO__HOW", how)
        .env("KINEMESH_SHUTDOWN__GRACE_MS", grace_ms.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait_up(child: &mut Child) {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
}

fn code_of(mut child: Child) -> i32 {
    child.wait().unwrap().code().expect("ended by itself, not by a signal")
}

fn signal(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn asked_to_stop_exits_0() {
    for name in ["-TERM", "-INT"] {
        let mut child = start("wait", 5_000);
        wait_up(&mut child);
        signal(&child, name);
        assert_eq!(code_of(child), 0);
    }
}

#[test]
fn a_process_with_every_thread_wedged_is_gone_within_its_grace() {
    let mut child = start("wedge", 700);
    wait_up(&mut child);
    let asked = Instant::now();
    signal(&child, "-TERM");
    assert_eq!(code_of(child), 0);
    // The default is 5 s.
    assert!(asked.elapsed() < Duration::from_secs(4), "took {:?}", asked.elapsed());
}

#[test]
fn a_fatal_end_keeps_its_code_whatever_is_left_running() {
    assert_eq!(code_of(start("fail-wedged", 5_000)), 4);
    assert_eq!(code_of(start("orphan", 5_000)), 3);
    assert_eq!(code_of(start("panic", 5_000)), 1);
    assert_eq!(code_of(start("lie", 5_000)), 1);
}

#[test]
fn a_configuration_that_cannot_be_used_exits_2_and_says_which_key() {
    let mut child = Command::new(example())
        .env("KINEMESH_HTTP__PORT", "eighty")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(code_of(child), 2);
    assert!(text.contains("http.port") && text.contains("KINEMESH_HTTP__PORT"), "{text}");
}

#[test]
fn print_config_says_where_each_value_came_from() {
    let output = Command::new(example())
        .args(["--print-config", "--set", "log.format=json"])
        .env("KINEMESH_NATS__PASSWORD", "hunter2")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(text.contains("format = \"json\"  # --set"), "{text}");
    assert!(
        text.contains("password = \"(set)\"  # KINEMESH_NATS__PASSWORD") && !text.contains("hunter2"),
        "{text}"
    );
    assert!(text.contains("grace_ms = 5000  # default"), "{text}");
}
