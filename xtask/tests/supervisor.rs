//! The supervisor, with shell scripts in the place of services.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use xtask::console::Console;
use xtask::stack::{Phase, Refusal, Spec, Supervisor};

const PATIENCE: Duration = Duration::from_secs(20);
/// What a stop may take, whatever the processes do, and a second for a busy machine.
const STOP: Duration = Duration::from_secs(6);

fn supervisor() -> Supervisor {
    Supervisor::new(Arc::new(Console::new()), 8)
}

fn script(name: &str, phase: Phase, dir: &Path, text: &str) -> Spec {
    Spec {
        name: name.to_owned(),
        phase,
        program: PathBuf::from("sh"),
        args: vec!["-c".into(), text.into()],
        env: vec![("DIR".to_owned(), dir.into())],
    }
}

/// Looks after the stack until `condition` gives a value.
fn tick_until<T>(supervisor: &mut Supervisor, mut condition: impl FnMut(Option<Refusal>) -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        let refusal = supervisor.tick(Instant::now()).expect("a supervisor that can look");
        if let Some(value) = condition(refusal) {
            return value;
        }
        assert!(Instant::now() < end, "not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn text(dir: &TempDir, file: &str) -> String {
    fs::read_to_string(dir.path().join(file)).unwrap_or_default()
}

#[test]
fn what_dies_is_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut supervisor = supervisor();

    supervisor.start(script("dies", Phase::Stage0, dir.path(), "echo life >> $DIR/lives; exit 4")).unwrap();

    tick_until(&mut supervisor, |_| (text(&dir, "lives").lines().count() >= 3).then_some(()));
    supervisor.stop();
}

#[test]
fn a_refused_configuration_is_reported_with_its_last_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut supervisor = supervisor();

    let refuses = script("leader", Phase::Mesh, dir.path(), "echo 'mesh.world_size: 3' >&2; exit 2");
    supervisor.start(refuses).unwrap();

    let refusal = tick_until(&mut supervisor, |refusal| refusal);
    assert_eq!(refusal.process, "leader");
    assert_eq!(refusal.message, "mesh.world_size: 3");
    supervisor.stop();
}

#[test]
fn stopping_goes_phase_by_phase() {
    let dir = tempfile::tempdir().unwrap();
    let mut supervisor = supervisor();
    for (name, phase) in [("nats", Phase::Broker), ("gateway", Phase::Gateway), ("stage0", Phase::Stage0)] {
        let text = format!(
            "trap 'echo {name} >> $DIR/stopped; exit 0' TERM; echo {name} >> $DIR/up; while :; do sleep 0.02; done"
        );
        supervisor.start(script(name, phase, dir.path(), &text)).unwrap();
    }
    tick_until(&mut supervisor, |_| (text(&dir, "up").lines().count() == 3).then_some(()));

    supervisor.stop();

    assert_eq!(text(&dir, "stopped"), "gateway\nstage0\nnats\n");
}

#[test]
fn what_ignores_the_wish_to_stop_is_killed_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut supervisor = supervisor();
    let stubborn = "trap '' TERM; echo up > $DIR/up; while :; do sleep 0.1; done";
    supervisor.start(script("stubborn", Phase::Gateway, dir.path(), stubborn)).unwrap();
    tick_until(&mut supervisor, |_| (!text(&dir, "up").is_empty()).then_some(()));

    let asked = Instant::now();
    supervisor.stop();

    assert!(asked.elapsed() <= STOP, "took {:?} of {STOP:?}", asked.elapsed());
}
