//! Runs the search and tells what it found.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use super::Bounds;
use super::graph::{Graph, Mark};
use super::model::{Move, World};
use super::state::State;
use crate::cell::{Broken, Setup};

/// What a search found.
pub(crate) struct Checked {
    pub(crate) states: usize,
    pub(crate) transitions: usize,
    pub(crate) depth: usize,
    pub(crate) ready: usize,
    /// States where the bound on epochs ended the search.
    pub(crate) beyond: usize,
    /// The invariant that was broken, how, and the way there.
    pub(crate) broken: Option<(Broken, Vec<String>)>,
    pub(crate) serves: bool,
    /// States from which the mesh cannot become ready, and a shortest way to one of them.
    pub(crate) stranded: usize,
    pub(crate) way: Vec<String>,
}

pub(crate) fn check(setup: Setup, bounds: Bounds) -> Checked {
    let graph = Arc::new(Graph::default());
    let world = World { start: Instant::now(), setup, bounds, graph: Arc::clone(&graph) };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker =
        world.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let broken = checker.discovery("invariants").map(|path| {
        let last = path.last_state().cell.world.judge.broken().cloned();
        let story = path.into_vec().into_iter().filter_map(|(state, step)| Some(told(&state, step?)));
        (last.expect("the last state of a counterexample is broken"), story.collect())
    });
    // Where the search was broken off, there is nothing to ask of the graph.
    let stranded = if broken.is_some() { HashSet::new() } else { graph.stranded() };
    Checked {
        states: checker.unique_state_count(),
        transitions: checker.state_count(),
        depth: checker.max_depth(),
        ready: graph.count(Mark::Ready),
        beyond: graph.count(Mark::Beyond),
        broken,
        serves: checker.discovery("serves").is_some(),
        stranded: stranded.len(),
        way: way_to(checker.model(), &stranded),
    }
}

fn way_to(world: &World, wanted: &HashSet<u64>) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut queue = VecDeque::new();
    if !wanted.is_empty() {
        queue.extend(world.init_states().into_iter().map(|state| (state, Vec::new())));
    }
    while let Some((state, way)) = queue.pop_front() {
        if wanted.contains(&state.seal) {
            return way;
        }
        let mut moves = Vec::new();
        world.actions(&state, &mut moves);
        for step in moves {
            let Some(next) = world.next_state(&state, step) else { continue };
            if seen.insert(next.seal) {
                let way = [&way[..], &[told(&state, step)]].concat();
                queue.push_back((next, way));
            }
        }
    }
    Vec::new()
}

/// One line of a counterexample.
fn told(state: &State, step: Move) -> String {
    let phase = state.cell.leader.machine.as_ref().map(|m| m.view(state.cell.now).phase.as_str());
    let leader = phase.unwrap_or("dead");
    match step {
        Move::Deliver(at) | Move::Lose(at) | Move::Overlook(at) | Move::Delay(at) | Move::Repeat(at) => {
            let event: String = format!("{:?}", state.under_way[at].parcel.event).chars().take(160).collect();
            format!("[{leader}] {step:?} {event}")
        }
        _ => format!("[{leader}] {step:?}"),
    }
}
