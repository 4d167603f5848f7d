//! A cell with what is under way in it, sealed by its canonical form.

use std::fmt::{self, Debug};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use super::canon::{Print, seal};
use super::{Bounds, STEP};
use crate::cell::{Carriage, Cell, Event, Log, Node, Parcel, Process};

/// Further back than any timer reaches.
const HORIZON: u32 = 5;

/// A parcel and how it prints.
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    pub(super) parcel: Parcel,
    pub(super) print: Print,
}

#[derive(Clone)]
pub(crate) struct State {
    pub(super) cell: Cell,
    /// Of this round: all of it is delivered before what it leads to.
    pub(super) under_way: Vec<Arc<Sealed>>,
    /// Sent in this round.
    next: Vec<Arc<Sealed>>,
    /// For a later instant.
    pub(super) later: Vec<(Instant, Arc<Sealed>)>,
    /// Nothing of this round was delivered yet.
    pub(super) fresh: bool,
    pub(super) left: Bounds,
    prints: Vec<Arc<Print>>,
    pub(super) seal: u64,
}

impl Sealed {
    pub(super) fn new(parcel: Parcel) -> Arc<Self> {
        let print = Print::of(&parcel);
        Arc::new(Self { parcel, print })
    }

    /// What waits for `at`.
    pub(super) fn later(at: Instant, parcel: Parcel) -> Arc<Self> {
        let print = Print::of(&(at, &parcel));
        Arc::new(Self { parcel, print })
    }

    /// Its time has come.
    pub(super) fn due(&self) -> Arc<Self> {
        let by = if matches!(self.parcel.by, Carriage::At(_)) { Carriage::Local } else { self.parcel.by };
        Self::new(Parcel { by, ..self.parcel.clone() })
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.seal.hash(state);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.seal == other.seal
    }
}

impl Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.seal)
    }
}

impl State {
    pub(super) fn first(cell: Cell, left: Bounds) -> Self {
        let state = Self {
            cell,
            under_way: Vec::new(),
            next: Vec::new(),
            later: Vec::new(),
            fresh: true,
            left,
            prints: Vec::new(),
            seal: 0,
        };
        state.settle(None)
    }

    /// Takes up what the last move sent, forgets what cannot matter any more, and seals.
    pub(super) fn settle(mut self, before: Option<&Self>) -> Self {
        for parcel in std::mem::take(&mut self.cell.out) {
            match parcel.by {
                Carriage::At(at) => self.later.push((at, Sealed::later(at, parcel))),
                Carriage::Local | Carriage::Net => self.next.push(Sealed::new(parcel)),
            }
        }
        let cell = &self.cell;
        self.under_way.retain(|sealed| !is_lost(cell, &sealed.parcel));
        self.next.retain(|sealed| !is_lost(cell, &sealed.parcel));
        self.later.retain(|(_, sealed)| !is_lost(cell, &sealed.parcel));
        if self.eligible().next().is_none() && !self.next.is_empty() {
            self.under_way.append(&mut self.next);
            self.fresh = true;
        }
        self.cell.log = Log::default();
        self.prints = prints(&self.cell, before);
        let asked: Vec<Print> = self.cell.asked.iter().map(|asked| Print::of(&asked)).collect();
        let bounds = Print::of(&(self.left, self.fresh));
        let mut ordered: Vec<&Print> = self.prints.iter().map(AsRef::as_ref).collect();
        ordered.push(&bounds);
        let mut loose: Vec<(u8, &Print)> = asked.iter().map(|print| (0, print)).collect();
        loose.extend(self.under_way.iter().map(|sealed| (1, &sealed.print)));
        loose.extend(self.next.iter().map(|sealed| (2, &sealed.print)));
        loose.extend(self.later.iter().map(|(_, sealed)| (3, &sealed.print)));
        self.seal = seal(self.cell.now, STEP * HORIZON, &ordered, &loose);
        self
    }

    /// The process whose turn it is, if it is one's: deliveries to different processes do not depend on each other.
    pub(super) fn turn(&self) -> Option<Option<Node>> {
        let deliverable = self.under_way.iter().filter(|sealed| self.cell.deliverable(&sealed.parcel));
        let receivers = deliverable.map(|sealed| self.cell.receiver(&sealed.parcel.event));
        receivers.min_by_key(|node| (node.is_none(), *node))
    }

    /// What may be delivered now, each of several equals once.
    pub(super) fn eligible(&self) -> impl Iterator<Item = (usize, &Sealed)> {
        let turn = self.turn();
        let all = self.under_way.iter().enumerate();
        all.filter(move |(at, sealed)| {
            turn == Some(self.cell.receiver(&sealed.parcel.event))
                && self.cell.deliverable(&sealed.parcel)
                && self.under_way[..*at].iter().all(|earlier| earlier.print != sealed.print)
        })
        .map(|(at, sealed)| (at, &**sealed))
    }
}

/// Whether a parcel would be dropped wherever it arrives.
fn is_lost(cell: &Cell, parcel: &Parcel) -> bool {
    let receiver = cell.receiver(&parcel.event);
    let nobody = receiver.is_none() && !matches!(parcel.event, Event::Met(..));
    let died = |node: Node| parcel.life.is_some_and(|life| cell.life(node) != life || !cell.is_alive(node));
    nobody || receiver.is_some_and(died) || cell.is_moot(parcel)
}

/// Of each process and of the world around them; only what changed is printed anew.
fn prints(cell: &Cell, before: Option<&State>) -> Vec<Arc<Print>> {
    fn print<M: Debug>(at: usize, now: &Process<M>, before: Option<(&State, &Process<M>)>) -> Arc<Print> {
        match before {
            Some((state, old)) if now.is_same(old) => Arc::clone(&state.prints[at]),
            _ => Arc::new(Print::of(now)),
        }
    }
    let mut prints = vec![print(0, &cell.leader, before.map(|s| (s, &s.cell.leader)))];
    for (w, worker) in cell.workers.iter().enumerate() {
        prints.push(print(prints.len(), worker, before.map(|s| (s, &s.cell.workers[w]))));
    }
    for (c, controller) in cell.controllers.iter().enumerate() {
        prints.push(print(prints.len(), controller, before.map(|s| (s, &s.cell.controllers[c]))));
    }
    prints.push(Arc::new(Print::of(&cell.world)));
    prints
}
