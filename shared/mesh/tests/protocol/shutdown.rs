//! Asked to stop in whatever state, with every peer standing still, a process is gone within its bound.

use std::time::Duration;

use contract::envelope::MeshPhase;
use mesh::{ExitCode, Timing};

use crate::cell::Node;
use crate::fixtures::ms;
use crate::sim::{Fault, PERFECT, Sim};

/// A mesh of two, run until `node` shows `phase`.
fn in_phase(node: Node, phase: MeshPhase) -> Sim {
    let mut sim = Sim::new(2, 1, 11, PERFECT);
    let shows = move |sim: &Sim| shown(sim, node) == Some(phase);
    match phase {
        // A rank that is lost while a call runs.
        MeshPhase::Faulted => {
            let runs = |sim: &Sim| shown(sim, Node::Worker(0)) == Some(MeshPhase::Busy);
            assert!(sim.run_until(ms(20_000), runs));
            let other = if node == Node::Leader { Node::Worker(0) } else { Node::Leader };
            sim.strike(Fault::Kill(other));
        }
        MeshPhase::Draining => {
            assert!(sim.run_until(ms(20_000), |sim| shown(sim, node) == Some(MeshPhase::Busy)));
            sim.strike(Fault::Drain(node));
        }
        _ => {}
    }
    assert!(sim.run_until(ms(40_000), shows), "{node:?} never shows {}", phase.as_str());
    sim
}

fn shown(sim: &Sim, node: Node) -> Option<MeshPhase> {
    match node {
        Node::Worker(w) => sim.cell.workers[w].machine.as_ref().map(|m| m.view().phase),
        _ => sim.phase(),
    }
}

/// Stops every other process, asks `node` to stop, and says how long it took to end, and with what code.
pub(crate) fn stops_among_the_silent(node: Node, phase: MeshPhase) -> (Duration, Option<ExitCode>) {
    let mut sim = in_phase(node, phase);
    for peer in sim.cell.nodes().into_iter().filter(|peer| *peer != node) {
        if sim.cell.is_alive(peer) {
            sim.cell.freeze(peer);
        }
    }
    let asked = sim.cell.now;
    sim.strike(Fault::Drain(node));
    let since = asked.saturating_duration_since(sim.start);
    assert!(sim.run_until(since + ms(60_000), |sim| !sim.cell.is_alive(node)), "{node:?} is still there");
    let code = sim.cell.log.exits.iter().rev().find(|(who, ..)| *who == node).map(|(_, code, _)| *code);
    (sim.cell.now.saturating_duration_since(asked), code)
}

#[test]
fn from_each_state_with_every_peer_silent_a_process_ends_within_its_bound() {
    let bound = Timing::default().drain + Timing::default().tick * 2;
    let leader = [
        MeshPhase::Forming,
        MeshPhase::Loading,
        MeshPhase::Warming,
        MeshPhase::Ready,
        MeshPhase::Busy,
        MeshPhase::Draining,
        MeshPhase::Faulted,
    ];
    let worker = [
        MeshPhase::Forming,
        MeshPhase::Loading,
        MeshPhase::Warming,
        MeshPhase::Ready,
        MeshPhase::Busy,
        MeshPhase::Faulted,
    ];
    let cases = leader.map(|phase| (Node::Leader, phase));
    let cases = cases.into_iter().chain(worker.map(|phase| (Node::Worker(0), phase)));
    for (node, phase) in cases {
        let (took, code) = stops_among_the_silent(node, phase);
        assert!(took <= bound, "{node:?} in {}: {took:?}", phase.as_str());
        assert_eq!(code, Some(ExitCode::Asked), "{node:?} in {}", phase.as_str());
    }
}
