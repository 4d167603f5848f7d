//! A cell as the machines see it: processes that live, freeze and die, a network, collectives that meet, a leader key.
//! What a machine asks for comes out as [`Parcel`]s; when each is delivered, and whether at all, is the choice of
//! whoever drives the cell: the simulation by its dice, the model check by trying everything.

mod act;
mod group;
mod judge;
mod process;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::envelope::{Lease, MeshPhase, Reply};
use contract::tp::{JoinReply, PlanId, PlanRef, PlanRequest};
use contract::{CacheEpoch, CallId, Error, InstanceId, MeshEpoch, Rank, Reason, SessionId};
use mesh::controller::{self, Controller};
use mesh::leader::{self, Leader, Verb};
use mesh::worker::{self, Worker};
use mesh::{ExitCode, Ticket, Timing};

pub(crate) use self::group::{Groups, Job};
pub(crate) use self::judge::{Broken, Judge};
pub(crate) use self::process::{Life, Node, Process};
use crate::diagram;
use crate::fixtures::infer;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) ranks: u32,
    pub(crate) controllers: usize,
    pub(crate) warm_up_chunks: u32,
    pub(crate) timing: Timing,
    /// Budget of one chunk.
    pub(crate) call: Duration,
    pub(crate) sabotage: Option<Sabotage>,
}

/// A defect put around a machine, to see that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// A worker runs what it only acknowledged.
    RunsOnPlan,
    /// The key is given out again without a new revision.
    SameEpochTwice,
    /// The link of a lease that is not in force is read.
    ReadsAnyLink,
    /// stage0 delivers the result of a history that is over.
    DeliversOldResults,
    /// stage0 delivers a result whose forwards were not counted right.
    MiscountsResults,
    /// stage0 writes the slots of a call that has not ended at the mesh.
    WritesQuarantinedSlots,
    /// stage0 forgets to tell a session how its call ended.
    ForgetsToDeliver,
    /// A process that was asked to stop goes on.
    IgnoresDrain,
    /// A leader that lost its mesh does not form it again.
    NeverFormsAgain,
}

/// How a parcel travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carriage {
    /// Inside a process or over a socket of its own: it arrives.
    Local,
    /// Over the broker: it may be lost, repeated or late.
    Net,
    /// A timer.
    At(Instant),
}

#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    pub(crate) event: Event,
    pub(crate) by: Carriage,
    /// Meant for this life of the receiver only.
    pub(crate) life: Option<Life>,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Leader(leader::Input),
    Worker(usize, worker::Input),
    Controller(usize, controller::Input),
    /// To whoever serves this rank of this epoch.
    Rank(MeshEpoch, Rank, Ticket, RankAsk),
    /// All ranks are in the collective: it ends well.
    Met(MeshEpoch, Job),
    /// A rank's monitor: its time in the collective is over.
    TimeUp(MeshEpoch, Node, Job),
    /// Whoever asked waits no longer.
    Expired(Ticket),
    Answer(Ticket, Answer),
}

#[derive(Clone, Debug)]
pub(crate) enum RankAsk {
    Plan(Box<PlanRequest>),
    Go(PlanRef),
    Cancel(PlanRef),
}

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Join(Result<JoinReply, Error>),
    Call(Box<Result<Reply, Error>>),
    Ack(Result<(), Error>),
}

/// Where an answer goes.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    life: Life,
    what: Asked,
}

#[derive(Clone, Debug)]
enum Asked {
    Join(usize),
    Call(usize, CallId),
    Rank(MeshEpoch, Rank, Verb, PlanId),
}

/// A liveness socket, open at both ends.
#[derive(Clone, Copy, Debug)]
struct Socket {
    epoch: MeshEpoch,
    rank: Rank,
}

/// What a session of a controller asks next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) cache_epoch: CacheEpoch,
    pub(crate) chunk: u64,
}

/// Everything outside the machines that their future depends on.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// Revision of the leader key.
    key: MeshEpoch,
    sockets: BTreeMap<usize, Socket>,
    pub(crate) groups: Groups,
    sessions: Vec<Session>,
    pub(crate) judge: Judge,
}

/// What happened, for those who read a schedule's outcome.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    pub(crate) delivered: usize,
    pub(crate) failed: Vec<Error>,
    pub(crate) exits: Vec<(Node, ExitCode, String)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) setup: Setup,
    pub(crate) now: Instant,
    pub(crate) leader: Process<Leader>,
    pub(crate) workers: Vec<Process<Worker>>,
    pub(crate) controllers: Vec<Process<Controller>>,
    /// Requests that wait for an answer.
    pub(crate) asked: BTreeMap<Ticket, Asker>,
    pub(crate) world: World,
    pub(crate) log: Log,
    pub(crate) out: Vec<Parcel>,
    /// Source of tickets and identities.
    next: u64,
}

impl Cell {
    pub(crate) fn new(now: Instant, setup: Setup) -> Self {
        let session = |c: usize| Session {
            id: format!("{:032x}", 0x5e55 + c).parse().unwrap(),
            cache_epoch: CacheEpoch(1),
            chunk: 0,
        };
        let mut cell = Self {
            setup,
            now,
            leader: Process::absent(),
            workers: (1..setup.ranks).map(|_| Process::absent()).collect(),
            controllers: (0..setup.controllers).map(|_| Process::absent()).collect(),
            asked: BTreeMap::new(),
            world: World {
                key: MeshEpoch(0),
                sockets: BTreeMap::new(),
                groups: Groups::default(),
                sessions: (0..setup.controllers).map(session).collect(),
                judge: Judge::default(),
            },
            log: Log::default(),
            out: Vec::new(),
            next: 0,
        };
        for node in cell.nodes() {
            cell.start(node);
        }
        cell
    }

    pub(crate) fn nodes(&self) -> Vec<Node> {
        let workers = (0..self.workers.len()).map(Node::Worker);
        let controllers = (0..self.controllers.len()).map(Node::Controller);
        [Node::Leader].into_iter().chain(workers).chain(controllers).collect()
    }

    fn post(&mut self, by: Carriage, event: Event) {
        // What happens inside a process dies with it.
        let life = match by {
            Carriage::Net => None,
            Carriage::Local | Carriage::At(_) => self.receiver(&event).map(|node| self.life(node)),
        };
        self.out.push(Parcel { event, by, life });
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
    }

    fn instance(&mut self) -> InstanceId {
        self.next += 1;
        format!("{:032x}", self.next).parse().unwrap()
    }

    /// Whose process handles `event`, if it is anyone's.
    pub(crate) fn receiver(&self, event: &Event) -> Option<Node> {
        match event {
            Event::Leader(_) => Some(Node::Leader),
            Event::Worker(w, _) => Some(Node::Worker(*w)),
            Event::Controller(c, _) => Some(Node::Controller(*c)),
            Event::TimeUp(_, node, _) => Some(*node),
            Event::Rank(epoch, rank, ..) => self.serving(*epoch, *rank).map(Node::Worker),
            Event::Expired(ticket) | Event::Answer(ticket, _) => {
                self.asked.get(ticket).map(|asker| match asker.what {
                    Asked::Join(w) => Node::Worker(w),
                    Asked::Call(c, _) => Node::Controller(c),
                    Asked::Rank(..) => Node::Leader,
                })
            }
            Event::Met(..) => None,
        }
    }

    fn serving(&self, epoch: MeshEpoch, rank: Rank) -> Option<usize> {
        let serves = |(_, s): &(&usize, &Socket)| (s.epoch, s.rank) == (epoch, rank);
        self.world.sockets.iter().find(serves).map(|(w, _)| *w)
    }

    /// Whether `parcel` can be handled now, be it by dropping it.
    pub(crate) fn deliverable(&self, parcel: &Parcel) -> bool {
        match (&parcel.event, self.receiver(&parcel.event)) {
            // A collective waits for a rank that stands still.
            (Event::Met(epoch, job), _) => {
                !self.world.groups.nodes(*epoch, *job).iter().any(|node| self.is_frozen(*node))
            }
            (_, None) => true,
            (_, Some(node)) => {
                parcel.life.is_some_and(|life| life != self.life(node))
                    || (self.is_alive(node) && !self.is_frozen(node))
            }
        }
    }

    /// Whether it is of no use any more: a timer of what is over, or a request that nobody waits for and that reaches
    /// nobody now. Whoever slept discards what came in the meantime.
    pub(crate) fn is_moot(&self, parcel: &Parcel) -> bool {
        match &parcel.event {
            Event::Leader(leader::Input::Join { ticket, .. } | leader::Input::Call { ticket, .. })
            | Event::Rank(_, _, ticket, _) => !self.asked.contains_key(ticket) && !self.deliverable(parcel),
            Event::Expired(ticket) => !self.asked.contains_key(ticket),
            Event::TimeUp(epoch, node, job) => !self.world.groups.nodes(*epoch, *job).contains(node),
            _ => false,
        }
    }

    pub(crate) fn deliver(&mut self, parcel: Parcel) {
        if let (Some(life), Some(node)) = (parcel.life, self.receiver(&parcel.event))
            && life != self.life(node)
        {
            return;
        }
        self.step(parcel.event);
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Leader(input) => self.tell_leader(input),
            Event::Worker(w, input) => self.tell_worker(w, input),
            Event::Controller(c, input) => self.tell_controller(c, input),
            Event::Rank(epoch, rank, ticket, ask) => {
                let Some(w) = self.serving(epoch, rank) else { return };
                self.tell_worker(
                    w,
                    match ask {
                        RankAsk::Plan(request) => worker::Input::Plan { ticket, request },
                        RankAsk::Go(reference) => worker::Input::Go { ticket, reference },
                        RankAsk::Cancel(reference) => worker::Input::Cancel { ticket, reference },
                    },
                );
            }
            Event::Met(epoch, job) => self.met(epoch, job),
            Event::TimeUp(epoch, node, job) => self.time_up(epoch, node, job),
            Event::Expired(ticket) => {
                let spent = Error::new(Reason::BudgetSpent, "no answer");
                match self.asked.get(&ticket).map(|asker| asker.what.clone()) {
                    Some(Asked::Join(_)) => self.answered(ticket, Answer::Join(Err(spent))),
                    Some(Asked::Call(..)) => self.answered(ticket, Answer::Call(Box::new(Err(spent)))),
                    Some(Asked::Rank(..)) => self.answered(ticket, Answer::Ack(Err(spent))),
                    None => {}
                }
            }
            Event::Answer(ticket, answer) => self.answered(ticket, answer),
        }
    }

    pub(crate) fn tell_leader(&mut self, input: leader::Input) {
        let Some(machine) = &mut self.leader.machine else { return };
        if let leader::Input::Fetched { .. } = &input {
            self.world.judge.has_read();
        }
        if let leader::Input::EpochTaken { epoch, .. } = &input {
            self.world.judge.leads(*epoch, self.leader.instance);
        }
        let machine = Arc::make_mut(machine);
        let before = machine.view(self.now).phase;
        let actions = machine.handle(self.now, input);
        diagram::leader_went(before, &actions, machine.view(self.now).phase);
        for action in actions {
            self.leader_action(action);
        }
    }

    pub(crate) fn tell_worker(&mut self, w: usize, input: worker::Input) {
        let Some(machine) = &mut self.workers[w].machine else { return };
        let planned = match &input {
            worker::Input::Plan { request, .. } if self.setup.sabotage == Some(Sabotage::RunsOnPlan) => {
                Some(Box::new(request.plan.clone()))
            }
            _ => None,
        };
        let machine = Arc::make_mut(machine);
        let before = machine.view().phase;
        let mut actions = machine.handle(self.now, input);
        diagram::worker_went(before, &actions, machine.view().phase);
        if let Some(plan) = planned {
            actions.push(worker::Action::Run { plan, deadline: self.now + self.setup.call });
        }
        for action in actions {
            self.worker_action(w, action);
        }
    }

    pub(crate) fn tell_controller(&mut self, c: usize, input: controller::Input) {
        let Some(machine) = &mut self.controllers[c].machine else { return };
        let machine = Arc::make_mut(machine);
        let before = diagram::controller_state(machine);
        let actions = machine.handle(self.now, input);
        diagram::controller_went(before, &actions, machine);
        for action in actions {
            self.controller_action(c, action);
        }
    }

    fn ask(&mut self, what: Asked, until: Instant, request: impl FnOnce(Ticket) -> Event) {
        let ticket = self.ticket();
        let node = match what {
            Asked::Join(w) => Node::Worker(w),
            Asked::Call(c, _) => Node::Controller(c),
            Asked::Rank(..) => Node::Leader,
        };
        self.asked.insert(ticket, Asker { life: self.life(node), what });
        self.post(Carriage::Net, request(ticket));
        self.post(Carriage::At(until), Event::Expired(ticket));
    }

    fn answered(&mut self, ticket: Ticket, answer: Answer) {
        let Some(Asker { what, .. }) = self.asked.remove(&ticket) else { return };
        match (what, answer) {
            (Asked::Join(w), Answer::Join(result)) => {
                self.tell_worker(w, worker::Input::JoinAnswered(result));
            }
            (Asked::Call(c, call), Answer::Call(result)) => {
                self.tell_controller(c, controller::Input::Answered { call, result });
            }
            (Asked::Rank(epoch, rank, verb, plan_id), Answer::Ack(result)) => {
                if verb == Verb::Plan && result.is_ok() {
                    self.world.judge.acknowledged(epoch, plan_id, rank);
                }
                self.tell_leader(leader::Input::Answered { epoch, rank, verb, plan_id, result });
            }
            (what, answer) => panic!("{answer:?} for {what:?}"),
        }
    }

    /// Whether stage0 `c` asks for a chunk now: its actor is free, and status says that the mesh is ready.
    pub(crate) fn may_request(&self, c: usize) -> bool {
        let Process { machine: Some(machine), frozen: false, .. } = &self.controllers[c] else {
            return false;
        };
        let ready = |leader: &Arc<Leader>| leader.view(self.now).phase == MeshPhase::Ready;
        let free = machine.quarantined().is_none() && self.leader.machine.as_ref().is_some_and(ready);
        let anyway = self.setup.sabotage == Some(Sabotage::WritesQuarantinedSlots);
        machine.attached().is_some() && machine.running().is_none() && (free || anyway)
    }

    /// stage0 writes the tensors of its next chunk into the link and asks for it.
    pub(crate) fn request(&mut self, c: usize) {
        let Some(hello) = self.controllers[c].machine.as_ref().and_then(|m| m.attached()) else { return };
        let lease = Lease { controller: self.controllers[c].instance, epoch: hello.lease };
        let Session { id, cache_epoch, chunk } = self.world.sessions[c];
        let infer = Box::new(infer(id, cache_epoch.0, chunk));
        let (ticket, deadline) = (self.ticket(), self.now + self.setup.call);
        self.world.judge.asked(ticket, c, lease, &infer, deadline);
        self.tell_controller(c, controller::Input::Infer { ticket, infer, deadline });
    }

    /// Time passes for everyone who runs: beats over the sockets, then a tick each.
    pub(crate) fn tick(&mut self) {
        for node in self.nodes() {
            if !self.is_frozen(node) {
                match node {
                    Node::Leader => self.tell_leader(leader::Input::Tick),
                    Node::Worker(w) => self.tell_worker(w, worker::Input::Tick),
                    Node::Controller(c) => self.tell_controller(c, controller::Input::Tick),
                }
            }
        }
        let running = |node: Node| self.is_alive(node) && !self.is_frozen(node);
        let (calls, drains) = (self.nodes(), self.nodes());
        let calls: Vec<Node> = calls.into_iter().filter(|n| running(*n)).collect();
        let drains: Vec<(Node, Instant)> =
            drains.into_iter().filter(|n| running(*n)).filter_map(|n| Some((n, self.stopping(n)?))).collect();
        self.world.judge.on_time(self.now, &self.setup.timing, &calls, &drains);
    }

    /// The revision of the leader key.
    pub(crate) fn key(&self) -> MeshEpoch {
        self.world.key
    }

    /// The mesh serves: every rank is ready in one epoch, and somebody holds the lease.
    pub(crate) fn is_ready(&self) -> bool {
        let Some(leader) = &self.leader.machine else { return false };
        let view = leader.view(self.now);
        let worker = |w: &Process<Worker>| {
            w.machine.as_ref().is_some_and(|m| {
                let own = m.view();
                (own.phase, own.epoch) == (MeshPhase::Ready, view.epoch)
            })
        };
        view.phase == MeshPhase::Ready
            && self.workers.iter().all(worker)
            && (self.controllers.is_empty()
                || self
                    .controllers
                    .iter()
                    .any(|c| c.machine.as_ref().is_some_and(|m| m.attached().is_some())))
    }
}
