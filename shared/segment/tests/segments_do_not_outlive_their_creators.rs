use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::{env, fs, io, process};

use segment::{Segment, remove_orphans};

const CHILD: &str = "SEGMENT_TEST_CHILD";

fn file(name: &str) -> PathBuf {
    PathBuf::from("/dev/shm").join(name)
}

fn prefix(test: &str) -> String {
    format!("kinemesh-test-{test}-{}", process::id())
}

#[test]
fn what_one_mapping_writes_the_other_reads_and_the_file_is_private() {
    let ours = Segment::create(&prefix("two"), 8192).unwrap();
    let theirs = Segment::open(ours.name(), 8192).unwrap();
    ours.u64_at(64).store(7, Ordering::Release);
    assert_eq!(theirs.u64_at(64).load(Ordering::Acquire), 7);
    assert_eq!(fs::metadata(file(ours.name())).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn the_name_goes_with_the_creator_and_the_memory_with_the_last_mapping() {
    let ours = Segment::create(&prefix("drop"), 4096).unwrap();
    let name = ours.name().to_owned();
    let theirs = Segment::open(&name, 4096).unwrap();
    drop(ours);
    assert!(!file(&name).exists());
    theirs.u32_at(0).store(1, Ordering::Release);
    assert_eq!(Segment::open(&name, 4096).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn names_and_lengths_from_messages_are_checked() {
    let ours = Segment::create(&prefix("check"), 4096).unwrap();
    assert_eq!(Segment::open(ours.name(), 8192).unwrap_err().kind(), io::ErrorKind::InvalidData);
    for name in ["", "../etc", "a/b", "A", &"x".repeat(129)] {
        assert_eq!(Segment::open(name, 4096).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
    }
}

#[test]
fn a_sweep_takes_what_a_killed_creator_left_and_nothing_that_lives() {
    if let Ok(prefix) = env::var(CHILD) {
        let _left = Segment::create(&prefix, 4096).unwrap();
        process::abort();
    }
    let prefix = prefix("sweep");
    let alive = Segment::create(&prefix, 4096).unwrap();
    let status = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_sweep_takes_what_a_killed_creator_left_and_nothing_that_lives"])
        .env(CHILD, &prefix)
        .status()
        .unwrap();
    assert!(!status.success());
    assert_eq!(remove_orphans(&prefix).unwrap(), 1);
    assert_eq!(remove_orphans(&prefix).unwrap(), 0);
    assert!(file(alive.name()).exists());
}

#[test]
fn a_creator_knows_whether_another_process_has_it_open() {
    if let Ok(name) = env::var(CHILD) {
        let _open = Segment::open(&name, 4096).unwrap();
        println!("\nopen");
        // Until it is killed: nobody writes to its standard input.
        let _ = io::stdin().read_line(&mut String::new());
        return;
    }
    let segment = Segment::create(&prefix("shared"), 4096).unwrap();
    assert!(!segment.is_shared());
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_creator_knows_whether_another_process_has_it_open", "--nocapture"])
        .env(CHILD, segment.name())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "open"));
    assert!(segment.is_shared() && segment.is_shared());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!segment.is_shared());
}
