//! What becomes of the machines' actions.

use contract::envelope::MeshPhase;
use contract::tp::Beat;
use contract::{CacheEpoch, Digest, MeshEpoch, Rank};
use mesh::controller;
use mesh::leader::{self, Source, Verb};
use mesh::worker;

use super::{Answer, Asked, Asker, Carriage, Cell, Event, Job, Node, RankAsk, Sabotage, Socket};
use crate::fixtures::link;

impl Asker {
    pub(super) fn node(&self) -> Node {
        match self.what {
            Asked::Join(w) => Node::Worker(w),
            Asked::Call(c, _) => Node::Controller(c),
            Asked::Rank(..) => Node::Leader,
        }
    }
}

impl Cell {
    pub(super) fn leader_action(&mut self, action: leader::Action) {
        use leader::{Action, Input, Message};
        match action {
            Action::TakeEpoch => self.take_epoch(),
            Action::CloseEpoch => self.close_sockets(),
            Action::AnswerJoin { ticket, result } => {
                self.post(Carriage::Net, Event::Answer(ticket, Answer::Join(result)));
            }
            Action::Answer { ticket, result } => {
                let result = Box::new(result);
                self.post(Carriage::Net, Event::Answer(ticket, Answer::Call(result)));
            }
            Action::Seek { lease } => {
                let mut alive = self.controllers.iter().filter(|process| process.machine.is_some());
                let gone = !alive.any(|process| process.instance == lease.controller);
                self.post(Carriage::Local, Event::Leader(Input::Sought { lease, gone }));
            }
            Action::OpenLink { lease } => {
                self.world.judge.leased(Some(lease));
                self.post(Carriage::Local, Event::Leader(Input::LinkOpened { lease, result: Ok(link()) }));
            }
            Action::CloseLink => self.world.judge.leased(None),
            Action::Fetch { plan, source } => {
                if let Source::Link { mut lease, infer } = source {
                    if self.setup.sabotage == Some(Sabotage::ReadsAnyLink) {
                        lease.epoch = lease.epoch.next();
                    }
                    self.world.judge.obeys(lease);
                    self.world.judge.reads(lease, &infer);
                }
                let fetched = Input::Fetched { plan_id: plan.plan_id, result: Ok(()) };
                self.post(Carriage::Local, Event::Leader(fetched));
            }
            Action::Send { epoch, rank, verb, plan_id, message, deadline } => {
                let ask = match (message, verb) {
                    (Message::Plan(request), _) => RankAsk::Plan(request),
                    (Message::Reference(reference), Verb::Go) => {
                        let served: Vec<_> = self.world.sockets.values().map(|s| s.epoch).collect();
                        self.world.judge.goes(epoch, plan_id, &reference.digest, &served);
                        RankAsk::Go(reference)
                    }
                    (Message::Reference(reference), _) => RankAsk::Cancel(reference),
                };
                self.ask(Asked::Rank(epoch, rank, verb, plan_id), deadline, |ticket| {
                    Event::Rank(epoch, rank, ticket, ask)
                });
            }
            Action::Load { epoch, deadline } => self.enter(epoch, Node::Leader, Job::Load, deadline),
            Action::Run { plan, deadline, deliver } => {
                if let Some(lease) = deliver {
                    self.world.judge.obeys(lease);
                }
                self.world.judge.leader_runs(&plan, self.workers.len());
                self.world.groups.expect(plan.expected_generator_calls);
                self.enter(plan.mesh_epoch, Node::Leader, Job::Run(plan.plan_id), deadline);
            }
            Action::Abort { .. } => self.abort(self.world.key),
            Action::RelayNoop(_) | Action::PublishShutdown(_) => {}
            Action::Exit { .. } if self.keeps_going(Node::Leader) => {}
            Action::Exit { code, reason } => {
                self.log.exits.push((Node::Leader, code, reason));
                self.kill(Node::Leader);
            }
        }
    }

    fn keeps_going(&self, node: Node) -> bool {
        self.setup.sabotage == Some(Sabotage::IgnoresDrain) && self.stopping(node).is_some()
    }

    fn take_epoch(&mut self) {
        let again = self.world.key != MeshEpoch(0);
        match self.setup.sabotage {
            Some(Sabotage::NeverFormsAgain) if again => return,
            Some(Sabotage::SameEpochTwice) if again => {}
            _ => {
                self.world.groups.close(self.world.key);
                self.world.key = self.world.key.next();
            }
        }
        let taken = leader::Input::EpochTaken {
            epoch: self.world.key,
            collective: vec![1],
            liveness: "127.0.0.1:1".into(),
        };
        self.post(Carriage::Local, Event::Leader(taken));
    }

    pub(super) fn worker_action(&mut self, w: usize, action: worker::Action) {
        use worker::Action;
        let node = Node::Worker(w);
        match action {
            Action::AskJoin(request) => {
                let until = self.now + self.setup.timing.join_retry;
                self.ask(Asked::Join(w), until, |ticket| {
                    Event::Leader(leader::Input::Join { ticket, request })
                });
            }
            Action::Enter(assignment) => {
                let socket = Socket { epoch: assignment.mesh_epoch, rank: assignment.rank };
                self.world.sockets.insert(w, socket);
                self.connect(w);
            }
            Action::Load { assignment, deadline } => {
                self.enter(assignment.mesh_epoch, node, Job::Load, deadline);
            }
            Action::Answer { ticket, result } => {
                self.post(Carriage::Net, Event::Answer(ticket, Answer::Ack(result.map(|_| ()))));
            }
            Action::Run { plan, deadline } => {
                self.world.judge.worker_runs(&plan);
                self.enter(plan.mesh_epoch, node, Job::Run(plan.plan_id), deadline);
            }
            Action::Abort { .. } => {
                if let Some(socket) = self.world.sockets.get(&w).copied() {
                    self.abort(socket.epoch);
                }
            }
            Action::Leave { reason } => self.close_socket(w, &reason),
            Action::Exit { .. } if self.keeps_going(node) => {}
            Action::Exit { code, reason } => {
                self.log.exits.push((node, code, reason));
                self.kill(node);
            }
        }
    }

    /// A socket to a leader that is of another epoch, or not there, closes at once.
    fn connect(&mut self, w: usize) {
        let Some(Socket { epoch, .. }) = self.world.sockets.get(&w).copied() else { return };
        let leads = self.leader.machine.as_ref().is_some_and(|m| m.view(self.now).epoch == Some(epoch));
        if !leads {
            let why = "connection refused".to_owned();
            self.post(Carriage::Local, Event::Worker(w, worker::Input::LeaderGone { epoch, why }));
        }
    }

    /// Beats both ways over every socket whose ends both run.
    pub(crate) fn beats(&self) -> Vec<Event> {
        let mut beats = Vec::new();
        let Some(leader) = self.leader.machine.as_ref().filter(|_| !self.leader.frozen) else { return beats };
        let view = leader.view(self.now);
        for (w, Socket { epoch, rank }) in &self.world.sockets {
            let worker = &self.workers[*w];
            let Some(machine) = worker.machine.as_ref().filter(|_| !worker.frozen) else { continue };
            let own = machine.view();
            let beat = |rank, instance, phase: MeshPhase, leaving| Beat {
                mesh_epoch: *epoch,
                rank,
                instance,
                phase,
                busy_ms: None,
                leaving,
                fault: None,
            };
            let up = beat(*rank, worker.instance, own.phase, own.draining);
            beats.push(Event::Leader(leader::Input::Beat(up)));
            if view.epoch == Some(*epoch) {
                let down = beat(Rank::LEADER, self.leader.instance, view.phase, view.draining);
                beats.push(Event::Worker(*w, worker::Input::Beat(down)));
            }
        }
        beats
    }

    /// What the leader's status message tells each controller.
    pub(crate) fn statuses(&self) -> Vec<Event> {
        let leader = self.leader.machine.as_ref().filter(|_| !self.leader.frozen);
        let Some(epoch) = leader.and_then(|leader| leader.view(self.now).epoch) else { return Vec::new() };
        let tell = |c| Event::Controller(c, controller::Input::Mesh { epoch });
        (0..self.controllers.len()).map(tell).collect()
    }

    pub(super) fn controller_action(&mut self, c: usize, action: controller::Action) {
        use controller::{Action, Input};
        match action {
            Action::Send { envelope, deadline } => {
                let call = envelope.call_id;
                let digest = Digest::of(&[&contract::codec::encode(&*envelope).unwrap()]);
                self.ask(Asked::Call(c, call), deadline, |ticket| {
                    Event::Leader(leader::Input::Call { ticket, envelope, digest, deadline })
                });
            }
            Action::Attach(hello) => {
                self.tell_controller(c, Input::Attached { lease: hello.lease, result: Ok(()) });
            }
            Action::Ready(_) => self.cut(c),
            Action::Deliver { .. } if self.setup.sabotage == Some(Sabotage::ForgetsToDeliver) => {}
            Action::Deliver { ticket, result } => {
                let epoch = self.controllers[c].machine.as_ref().and_then(|m| m.mesh_epoch());
                match result {
                    Ok(mut result) => {
                        match self.setup.sabotage {
                            Some(Sabotage::DeliversOldResults) => result.cache_epoch = CacheEpoch(0),
                            Some(Sabotage::MiscountsResults) => result.observed_generator_calls += 1,
                            _ => {}
                        }
                        self.world.judge.accepted(ticket, epoch, &result);
                        self.log.delivered += 1;
                        self.world.sessions[c].chunk += 1;
                    }
                    Err(error) => {
                        self.log.failed.push(error);
                        self.cut(c);
                    }
                }
                self.world.judge.ended(ticket);
            }
            Action::Exit { code, reason } => {
                self.log.exits.push((Node::Controller(c), code, reason));
                self.kill(Node::Controller(c));
            }
            Action::Refused(_) | Action::Lost(_) | Action::Quarantine { .. } | Action::Release { .. } => {}
        }
    }
}
