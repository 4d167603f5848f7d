//! Which transitions were seen, to compare them with the state diagrams in ARCHITECTURE.md.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use contract::envelope::MeshPhase;
use contract::tp::JoinReply;
use mesh::controller::{self, Controller};
use mesh::leader;
use mesh::worker::{self, Worker};

use crate::cell::Node;
use crate::check::{Bounds, check, setup};
use crate::fixtures::worker_config;
use crate::worker::{EPOCH, assignment, beat};
use crate::{schedules, shutdown};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrow {
    pub(crate) machine: &'static str,
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
}

static SEEN: Mutex<BTreeSet<Arrow>> = Mutex::new(BTreeSet::new());

pub(crate) fn seen() -> BTreeSet<Arrow> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn saw(machine: &'static str, from: &'static str, to: &'static str) {
    if from != to {
        SEEN.lock().unwrap_or_else(PoisonError::into_inner).insert(Arrow { machine, from, to });
    }
}

/// A step that ends an epoch passes through `faulted`, even if nothing holds it there.
fn went(machine: &'static str, before: MeshPhase, left: bool, after: MeshPhase) {
    if left {
        saw(machine, before.as_str(), MeshPhase::Faulted.as_str());
        saw(machine, MeshPhase::Faulted.as_str(), after.as_str());
    } else {
        saw(machine, before.as_str(), after.as_str());
    }
}

pub(crate) fn leader_went(before: MeshPhase, actions: &[leader::Action], after: MeshPhase) {
    let left = actions.iter().any(|a| matches!(a, leader::Action::CloseEpoch));
    went("leader", before, left, after);
}

pub(crate) fn worker_went(before: MeshPhase, actions: &[worker::Action], after: MeshPhase) {
    let left = actions.iter().any(|a| matches!(a, worker::Action::Leave { .. }));
    went("worker", before, left, after);
}

pub(crate) fn controller_state(controller: &Controller) -> &'static str {
    match (controller.attached(), controller.running(), controller.quarantined()) {
        (None, ..) => "unleased",
        (Some(_), Some(_), _) => "calling",
        (Some(_), None, Some(_)) => "quarantine",
        (Some(_), None, None) => "leased",
    }
}

pub(crate) fn controller_went(before: &'static str, actions: &[controller::Action], after: &Controller) {
    let stopped = actions.iter().any(|a| matches!(a, controller::Action::Exit { .. }));
    saw("controller", before, if stopped { "stopped" } else { controller_state(after) });
}

/// The arrows of the diagrams in ARCHITECTURE.md: in each mermaid block a comment names the machine.
fn drawn() -> BTreeSet<(String, String, String)> {
    let text = include_str!("../../../../ARCHITECTURE.md");
    let mut arrows = BTreeSet::new();
    for block in text.split("```mermaid").skip(1) {
        let block = block.split("```").next().unwrap_or_default();
        let machine = block.lines().find_map(|line| line.trim().strip_prefix("%% "));
        let machine = machine.expect("a diagram says of which machine it is");
        for line in block.lines() {
            if let Some((from, to)) = line.split_once(" --> ") {
                let to = to.split(':').next().unwrap_or_default();
                arrows.insert((machine.to_owned(), from.trim().to_owned(), to.trim().to_owned()));
            }
        }
    }
    arrows.retain(|(_, from, _)| from != "[*]");
    arrows
}

/// A leader that serves and is asked to stop between two beats: too rare for chance.
fn a_worker_hears_at_once_that_its_leader_drains() {
    let now = Instant::now();
    let mut worker = Worker::new(now, worker_config());
    let inputs = [
        worker::Input::Tick,
        worker::Input::JoinAnswered(Ok(JoinReply::Assigned(assignment(EPOCH)))),
        worker::Input::Loaded { epoch: EPOCH, result: Ok(()) },
        worker::Input::Beat(beat(EPOCH, MeshPhase::Draining)),
    ];
    for input in inputs {
        let before = worker.view().phase;
        let actions = worker.handle(now, input);
        worker_went(before, &actions, worker.view().phase);
    }
}

#[test]
fn the_diagrams_show_what_the_machines_do_and_nothing_else() {
    (1..=2000).for_each(schedules::schedule);
    let bounds = Bounds { faults: 1, epochs: 2, duplicates: 0, calls: 1 };
    check(setup(2, 1), bounds);
    a_worker_hears_at_once_that_its_leader_drains();
    for phase in [MeshPhase::Loading, MeshPhase::Warming] {
        shutdown::stops_among_the_silent(Node::Worker(0), phase);
    }
    let owned = |a: Arrow| (a.machine.to_owned(), a.from.to_owned(), a.to.to_owned());
    let seen: BTreeSet<_> = seen().into_iter().map(owned).collect();
    let drawn = drawn();
    let missing: Vec<_> = seen.difference(&drawn).collect();
    let never: Vec<_> = drawn.difference(&seen).collect();
    assert!(missing.is_empty() && never.is_empty(), "not drawn: {missing:#?}\nnever seen: {never:#?}");
}
