//! What can happen in a state.
//!
//! Time moves in rounds: all that is under way is delivered before what it leads to, in any order where one process gets
//! several; a message that is to come later than that is a fault. A fault of a process strikes at the beginning of a
//! round, or between two deliveries to that process.

use std::sync::Arc;
use std::time::Instant;

use mesh::{controller, leader};
use stateright::{Model, Property};

use super::graph::{Graph, Mark};
use super::state::{Sealed, State};
use super::{Bounds, STEP};
use crate::cell::{Carriage, Cell, Event, Node, Parcel, Setup};

/// How long a slow engine or disk takes: longer than a call may.
const SLOW: u32 = 3;
/// A supervisor starts what died within so many steps.
const DEAD: u32 = 2;
/// A process stands still for so many steps at most: longer than any of its peers waits for it.
const FROZEN: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// Every timer moves on by one step.
    Clock,
    Deliver(usize),
    Lose(usize),
    Repeat(usize),
    /// The holder of the lease is there, and is not found.
    Overlook(usize),
    /// A message arrives a step later, an engine or a disk takes longer than a call may.
    Delay(usize),
    Request(usize),
    Start(Node),
    Kill(Node),
    Freeze(Node),
    Thaw(Node),
    Drain(Node),
    /// One rank will count its forwards wrong.
    Lie,
    LoseKey,
}

pub(super) struct World {
    pub(super) start: Instant,
    pub(super) setup: Setup,
    pub(super) bounds: Bounds,
    pub(super) graph: Arc<Graph>,
}

impl World {
    /// The mesh forms once more than is explored.
    fn is_beyond(&self, cell: &Cell) -> bool {
        cell.key().0 > self.bounds.epochs.into()
    }
}

impl Model for World {
    type State = State;
    type Action = Move;

    fn init_states(&self) -> Vec<State> {
        vec![State::first(Cell::new(self.start, self.setup), self.bounds)]
    }

    fn actions(&self, state: &State, moves: &mut Vec<Move>) {
        let cell = &state.cell;
        if cell.world.judge.broken().is_some() || self.is_beyond(cell) {
            return;
        }
        let turn = state.turn();
        deliveries(state, moves);
        if turn.is_none() && !cell.nodes().into_iter().any(|node| comes_back(cell, node)) {
            moves.push(Move::Clock);
        }
        for node in cell.nodes() {
            let may = state.fresh || turn.is_none() || turn == Some(Some(node));
            if may {
                happenings(state, node, moves);
            }
        }
    }

    fn next_state(&self, before: &State, step: Move) -> Option<State> {
        let mut state = before.clone();
        let cell = &mut state.cell;
        match step {
            Move::Clock => {
                cell.now += STEP;
                let now = cell.now;
                let due = state.later.extract_if(.., |(at, _)| *at <= now);
                state.under_way.extend(due.map(|(_, sealed)| sealed.due()));
                for event in cell.beats().into_iter().chain(news(cell)) {
                    cell.deliver(Parcel { event, by: Carriage::Local, life: None });
                }
                cell.tick();
                state.fresh = true;
            }
            Move::Deliver(at) => {
                let sealed = state.under_way.remove(at);
                cell.deliver(sealed.parcel.clone());
                state.fresh = false;
            }
            Move::Lose(at) => {
                state.under_way.remove(at);
            }
            Move::Overlook(at) => {
                let sealed = state.under_way.remove(at);
                if let Event::Leader(leader::Input::Sought { lease, .. }) = sealed.parcel.event {
                    cell.tell_leader(leader::Input::Sought { lease, gone: true });
                }
                state.fresh = false;
            }
            Move::Delay(at) => {
                let sealed = state.under_way.remove(at);
                let steps = if sealed.parcel.by == Carriage::Net { 1 } else { SLOW };
                let at = cell.now + STEP * steps;
                state.later.push((at, Sealed::later(at, sealed.parcel.clone())));
            }
            Move::Repeat(at) => {
                let again = Arc::clone(&state.under_way[at]);
                state.under_way.push(again);
                state.left.duplicates -= 1;
            }
            Move::Request(c) => {
                cell.request(c);
                state.left.calls -= 1;
            }
            Move::Start(node) => cell.start(node),
            Move::Thaw(node) => cell.thaw(node),
            Move::Kill(node) => cell.kill(node),
            Move::Freeze(node) => cell.freeze(node),
            Move::Drain(node) => cell.drain(node),
            Move::Lie => cell.world.groups.lies = true,
            Move::LoseKey => {
                let reason = "the leader key is held by another".to_owned();
                cell.tell_leader(leader::Input::EpochLost { reason });
            }
        }
        if step.is_fault() {
            state.left.faults -= 1;
        }
        let state = state.settle(Some(before));
        let mark = if self.is_beyond(&state.cell) {
            Some(Mark::Beyond)
        } else {
            state.cell.is_ready().then_some(Mark::Ready)
        };
        self.graph.edge(before.seal, state.seal, mark);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("invariants", |_: &Self, state: &State| {
                state.cell.world.judge.broken().is_none()
            }),
            Property::sometimes("serves", |_: &Self, state: &State| {
                state.left.calls == 0 && state.cell.is_ready()
            }),
        ]
    }
}

impl Move {
    fn is_fault(self) -> bool {
        match self {
            Self::Lose(_) | Self::Delay(_) | Self::Kill(_) | Self::Freeze(_) | Self::Drain(_) => true,
            Self::Lie | Self::LoseKey | Self::Overlook(_) => true,
            Self::Clock | Self::Deliver(_) | Self::Repeat(_) | Self::Request(_) => false,
            Self::Start(_) | Self::Thaw(_) => false,
        }
    }
}

fn deliveries(state: &State, moves: &mut Vec<Move>) {
    for (at, Sealed { parcel, .. }) in state.eligible() {
        moves.push(Move::Deliver(at));
        if parcel.by == Carriage::Net && state.left.duplicates > 0 {
            moves.push(Move::Repeat(at));
        }
        if state.left.faults == 0 {
            continue;
        }
        match (&parcel.event, parcel.by) {
            (_, Carriage::Net) => moves.extend([Move::Lose(at), Move::Delay(at)]),
            (Event::Leader(leader::Input::Sought { gone: false, .. }), _) => moves.push(Move::Overlook(at)),
            // A slow engine, a slow disk.
            (Event::Met(..) | Event::Leader(leader::Input::Fetched { .. }), _) => moves.push(Move::Delay(at)),
            _ => {}
        }
    }
}

/// What can happen to a process beside what it is told.
fn happenings(state: &State, node: Node, moves: &mut Vec<Move>) {
    let cell = &state.cell;
    if !cell.is_alive(node) {
        return moves.push(Move::Start(node));
    }
    if cell.is_frozen(node) {
        return moves.push(Move::Thaw(node));
    }
    if let Node::Controller(c) = node
        && state.left.calls > 0
        && cell.may_request(c)
    {
        moves.push(Move::Request(c));
    }
    if state.left.faults == 0 {
        return;
    }
    moves.extend([Move::Kill(node), Move::Freeze(node)]);
    if cell.stopping(node).is_none() {
        moves.push(Move::Drain(node));
    }
    if node == Node::Leader {
        moves.push(Move::LoseKey);
        if cell.is_ready() && !cell.world.groups.lies {
            moves.push(Move::Lie);
        }
    }
}

/// Whether time cannot pass before `node` is back.
fn comes_back(cell: &Cell, node: Node) -> bool {
    let most = STEP * if cell.is_frozen(node) { FROZEN } else { DEAD };
    cell.away_for(node).is_some_and(|away| away >= most)
}

/// Status messages that tell a controller something.
fn news(cell: &Cell) -> Vec<Event> {
    let known = |event: &Event| match event {
        Event::Controller(c, controller::Input::Mesh { epoch }) => {
            let process = &cell.controllers[*c];
            process.frozen || process.machine.as_ref().is_some_and(|m| m.mesh_epoch() >= Some(*epoch))
        }
        _ => false,
    };
    cell.statuses().into_iter().filter(|event| !known(event)).collect()
}
