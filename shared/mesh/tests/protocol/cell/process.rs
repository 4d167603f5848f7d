//! Processes: they start, freeze, go on, are asked to stop, and die.

use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::{CacheEpoch, InstanceId};
use mesh::controller::{self, Controller};
use mesh::leader::{self, Leader};
use mesh::worker::{self, Worker};

use super::{Carriage, Cell, Event};
use crate::fixtures::{leader_config, worker_config};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Node {
    Leader,
    Worker(usize),
    Controller(usize),
}

/// Identity of one life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Life(pub(crate) u64);

#[derive(Clone, Debug)]
pub(crate) struct Process<M> {
    /// None while it is dead.
    pub(crate) machine: Option<Arc<M>>,
    pub(crate) instance: InstanceId,
    pub(crate) life: Life,
    pub(crate) frozen: bool,
    /// Dead or standing still since then.
    pub(crate) away: Option<Instant>,
    pub(crate) stopping: Option<Instant>,
}

impl<M> Process<M> {
    pub(super) fn absent() -> Self {
        let instance = format!("{:032x}", 0).parse().unwrap();
        Self { machine: None, instance, life: Life(0), frozen: false, away: None, stopping: None }
    }

    /// Whether nothing has happened to it since it was `before`.
    pub(crate) fn is_same(&self, before: &Self) -> bool {
        let machine = match (&self.machine, &before.machine) {
            (Some(now), Some(before)) => Arc::ptr_eq(now, before),
            (now, before) => now.is_none() && before.is_none(),
        };
        let rest = |p: &Self| (p.instance, p.life, p.frozen, p.away, p.stopping);
        machine && rest(self) == rest(before)
    }

    fn begin(&mut self, instance: InstanceId, life: Life, machine: M) {
        let machine = Some(Arc::new(machine));
        *self = Self { machine, instance, life, frozen: false, away: None, stopping: None };
    }

    fn end(&mut self, now: Instant) {
        self.machine = None;
        self.away = Some(now);
        self.frozen = false;
        self.stopping = None;
    }
}

macro_rules! of_process {
    ($cell:expr, $node:expr, $process:ident => $what:expr) => {
        match $node {
            Node::Leader => {
                let $process = &$cell.leader;
                $what
            }
            Node::Worker(w) => {
                let $process = &$cell.workers[w];
                $what
            }
            Node::Controller(c) => {
                let $process = &$cell.controllers[c];
                $what
            }
        }
    };
}

impl Cell {
    pub(crate) fn is_alive(&self, node: Node) -> bool {
        of_process!(self, node, process => process.machine.is_some())
    }

    pub(crate) fn is_frozen(&self, node: Node) -> bool {
        of_process!(self, node, process => process.frozen)
    }

    pub(crate) fn life(&self, node: Node) -> Life {
        of_process!(self, node, process => process.life)
    }

    pub(crate) fn stopping(&self, node: Node) -> Option<Instant> {
        of_process!(self, node, process => process.stopping)
    }

    pub(crate) fn start(&mut self, node: Node) {
        let (now, instance) = (self.now, self.instance());
        let life = Life(self.ticket().0);
        let timing = self.setup.timing;
        match node {
            Node::Leader => {
                let mut config = leader_config(self.setup.ranks);
                config.instance = instance;
                config.timing = timing;
                config.warm_up_chunks = self.setup.warm_up_chunks;
                let (leader, actions) = Leader::new(now, config);
                self.leader.begin(instance, life, leader);
                actions.into_iter().for_each(|action| self.leader_action(action));
            }
            Node::Worker(w) => {
                let mut config = worker_config();
                config.instance = instance;
                config.timing = timing;
                self.workers[w].begin(instance, life, Worker::new(now, config));
            }
            Node::Controller(c) => {
                self.controllers[c].begin(instance, life, Controller::new(instance, timing));
                self.cut(c);
            }
        }
    }

    /// SIGKILL, or the end of an exit: sockets close, everything inside is gone.
    pub(crate) fn kill(&mut self, node: Node) {
        let life = self.life(node);
        match node {
            Node::Leader => {
                self.close_sockets();
                self.leader.end(self.now);
                self.world.judge.leader_died();
            }
            Node::Worker(w) => {
                self.close_socket(w, "connection closed");
                self.workers[w].end(self.now);
            }
            Node::Controller(c) => {
                self.controllers[c].end(self.now);
                self.world.judge.controller_died(c);
            }
        }
        self.world.groups.leave(node);
        self.asked.retain(|_, asker| asker.node() != node || asker.life != life);
    }

    pub(crate) fn freeze(&mut self, node: Node) {
        self.set_frozen(node, true);
    }

    /// What it owes is owed from now on.
    pub(crate) fn thaw(&mut self, node: Node) {
        if !self.is_frozen(node) {
            return;
        }
        self.set_frozen(node, false);
        let now = self.now;
        match node {
            Node::Leader => self.leader.stopping = self.leader.stopping.map(|_| now),
            Node::Worker(w) => self.workers[w].stopping = self.workers[w].stopping.map(|_| now),
            Node::Controller(c) => self.world.judge.controller_woke(c, now),
        }
    }

    fn set_frozen(&mut self, node: Node, frozen: bool) {
        let away = frozen.then_some(self.now);
        match node {
            Node::Leader => (self.leader.frozen, self.leader.away) = (frozen, away),
            Node::Worker(w) => (self.workers[w].frozen, self.workers[w].away) = (frozen, away),
            Node::Controller(c) => (self.controllers[c].frozen, self.controllers[c].away) = (frozen, away),
        }
    }

    /// For how long it has been dead or has stood still.
    pub(crate) fn away_for(&self, node: Node) -> Option<Duration> {
        let away = of_process!(self, node, process => process.away);
        away.map(|since| self.now.saturating_duration_since(since))
    }

    /// SIGTERM.
    pub(crate) fn drain(&mut self, node: Node) {
        let now = self.now;
        match node {
            Node::Leader => {
                self.leader.stopping.get_or_insert(now);
                self.tell_leader(leader::Input::Drain);
            }
            Node::Worker(w) => {
                self.workers[w].stopping.get_or_insert(now);
                self.tell_worker(w, worker::Input::Drain);
            }
            Node::Controller(c) => {
                self.tell_controller(c, controller::Input::Bye);
                self.kill(node);
            }
        }
    }

    /// A new history after whatever went wrong.
    pub(super) fn cut(&mut self, c: usize) {
        let session = &mut self.world.sessions[c];
        session.cache_epoch = CacheEpoch(session.cache_epoch.0 + 1);
        session.chunk = 0;
    }

    pub(super) fn close_socket(&mut self, w: usize, why: &str) {
        if let Some(socket) = self.world.sockets.remove(&w) {
            let (instance, why) = (self.workers[w].instance, why.to_owned());
            let gone = leader::Input::Gone { epoch: socket.epoch, rank: socket.rank, instance, why };
            self.post(Carriage::Local, Event::Leader(gone));
        }
    }

    pub(super) fn close_sockets(&mut self) {
        let sockets: Vec<_> = self.world.sockets.iter().map(|(w, s)| (*w, s.epoch)).collect();
        for (w, epoch) in sockets {
            let why = "connection closed".to_owned();
            self.post(Carriage::Local, Event::Worker(w, worker::Input::LeaderGone { epoch, why }));
        }
    }
}
