//! Carries out what the leader machine decides and feeds back what came of it. It decides nothing itself, and never
//! waits: whatever takes time is a task of its own that reports through the queue.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::presence::{self, Presence};
use bus::{Bus, Endpoint};
use collectives::Rendezvous;
use contract::envelope::{EnvelopeV1, Reply};
use contract::tp::{Ack, JoinReply, JoinRequest, Plan, PlanId};
use contract::{CellId, Deadline, Digest, Error, MeshEpoch, Rank, Reason, WorldSize, subjects};
use engine::{CallTensors, Engine, Group, Outcome as RunOutcome};
use mesh::leader::{Action, Input, Leader, LoadFailure, Message, RunReport, Source, Verb};
use mesh::{ExitCode, Ticket, Timing};
use runtime::{Recorder, metric_names};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use contract::budget::Budget;
use contract::envelope::Lease;
use contract::envelope::MeshTimings;
use contract::model::ModelInfo;

use crate::board::Board;
use crate::key::Order;
use crate::link::LinkDesk;

/// How long the holder of a lease has to say that it is there.
const ANSWER: Budget = Budget::from_millis(500);

/// What reaches the driver.
pub(crate) enum Event {
    Machine(Input),
    Join {
        request: JoinRequest,
        reply: oneshot::Sender<Result<JoinReply, Error>>,
    },
    Call {
        envelope: Box<EnvelopeV1>,
        digest: Digest,
        deadline: Instant,
        reply: oneshot::Sender<Result<Reply, Error>>,
    },
    /// A new epoch, its meeting place and its endpoint.
    Epoch {
        epoch: MeshEpoch,
        rendezvous: Option<Rendezvous>,
        endpoint: Endpoint,
    },
    Fetched {
        plan_id: PlanId,
        result: Result<CallTensors, Error>,
    },
}

/// How the mesh ended.
pub(crate) struct Ended {
    pub(crate) code: ExitCode,
    pub(crate) reason: String,
}

pub(crate) struct Driver {
    pub(crate) leader: Leader,
    pub(crate) timing: Timing,
    pub(crate) bus: Bus,
    pub(crate) cell: CellId,
    pub(crate) world_size: WorldSize,
    pub(crate) model: ModelInfo,
    /// Address of the liveness socket.
    pub(crate) liveness: String,
    pub(crate) engine: Engine,
    pub(crate) links: Arc<LinkDesk>,
    pub(crate) board: Arc<Board>,
    pub(crate) recorder: Recorder,
    pub(crate) key: mpsc::Sender<Order>,
    /// Serves the calls of a new epoch.
    pub(crate) open_epoch: Arc<dyn EpochOpener>,
    pub(crate) tx: mpsc::Sender<Event>,
    pub(crate) state: DriverState,
}

/// Opens the endpoint of a new epoch; what that takes is the service's business.
pub(crate) trait EpochOpener: Send + Sync {
    fn open(
        &self,
        epoch: MeshEpoch,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Endpoint, Error>> + Send>>;
}

#[derive(Default)]
pub(crate) struct DriverState {
    next_ticket: u64,
    joins: HashMap<Ticket, oneshot::Sender<Result<JoinReply, Error>>>,
    calls: HashMap<Ticket, oneshot::Sender<Result<Reply, Error>>>,
    rendezvous: Option<Rendezvous>,
    endpoint: Option<Endpoint>,
    /// Tensors of the plan that was fetched last.
    fetched: Option<(PlanId, CallTensors)>,
    ended: Option<Ended>,
}

impl Driver {
    /// Runs until the machine says that the process is to end.
    pub(crate) async fn run(
        mut self,
        first: Vec<Action>,
        mut events: mpsc::Receiver<Event>,
        stop: CancellationToken,
    ) -> Ended {
        let mut tick = interval(self.timing.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining = false;
        self.perform(first).await;
        loop {
            let inputs = tokio::select! {
                biased;
                () = stop.cancelled(), if !draining => {
                    draining = true;
                    vec![Input::Drain]
                }
                event = events.recv() => match event {
                    Some(event) => self.input_of(event).into_iter().collect(),
                    None => vec![Input::EpochLost { reason: "the event queue is closed".to_owned() }],
                },
                _ = tick.tick() => vec![Input::Tick],
            };
            for input in inputs {
                self.step(input).await;
            }
            self.board.show(self.leader.view(Instant::now()));
            if let Some(ended) = self.state.ended.take() {
                return ended;
            }
        }
    }

    async fn step(&mut self, input: Input) {
        let now = Instant::now();
        if !input.is_routine() {
            self.recorder.input(now, &input);
        }
        if let Input::Beat(beat) = &input {
            self.board.note(|activity| activity.beat(beat.rank, now));
        }
        let before = self.leader.view(now);
        let actions = self.leader.handle(now, input);
        let after = self.leader.view(now);
        for action in actions.iter().filter(|action| !action.is_routine()) {
            self.recorder.action(now, action);
        }
        if before.phase != after.phase {
            debug!(from = before.phase.as_str(), to = after.phase.as_str(), "phase");
        }
        if actions.iter().any(Action::ends_epoch)
            && let Some(fault) = &after.last_fault
        {
            warn!(fault, "the mesh epoch ended");
            self.recorder.fault(now, fault);
        }
        // Shown before the actions, so that a closed epoch is closed for everyone who looks.
        self.board.show(after);
        self.perform(actions).await;
    }

    fn input_of(&mut self, event: Event) -> Option<Input> {
        match event {
            Event::Machine(input) => Some(input),
            Event::Join { request, reply } => {
                let ticket = self.ticket();
                self.state.joins.insert(ticket, reply);
                Some(Input::Join { ticket, request })
            }
            Event::Call { envelope, digest, deadline, reply } => {
                let ticket = self.ticket();
                // Whoever gave up is forgotten, so that this stays as small as the number of requests.
                self.state.calls.retain(|_, waiting| !waiting.is_closed());
                self.state.calls.insert(ticket, reply);
                Some(Input::Call { ticket, envelope, digest, deadline })
            }
            Event::Epoch { epoch, rendezvous, endpoint } => {
                let collective = rendezvous.as_ref().map(Rendezvous::to_bytes).unwrap_or_default();
                self.state.rendezvous = rendezvous;
                self.state.endpoint = Some(endpoint);
                Some(Input::EpochTaken { epoch, collective, liveness: self.liveness.clone() })
            }
            Event::Fetched { plan_id, result } => {
                let result = result.map(|tensors| self.state.fetched = Some((plan_id, tensors)));
                Some(Input::Fetched { plan_id, result })
            }
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.state.next_ticket += 1;
        Ticket(self.state.next_ticket)
    }

    async fn perform(&mut self, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::TakeEpoch => self.take_epoch(),
                Action::CloseEpoch => {
                    self.state.endpoint = None;
                    self.state.rendezvous = None;
                    self.state.fetched = None;
                    self.links.close();
                }
                Action::AnswerJoin { ticket, result } => {
                    if let Err(error) = &result {
                        info!(%error, "a worker was refused");
                    }
                    if let Some(reply) = self.state.joins.remove(&ticket) {
                        let _ = reply.send(result);
                    }
                }
                Action::Answer { ticket, result } => self.answer(ticket, result),
                Action::Seek { lease } => self.seek(lease),
                Action::OpenLink { lease } => self.open_link(lease),
                Action::CloseLink => self.links.close(),
                Action::Fetch { plan, source } => self.fetch(*plan, source),
                Action::Send { epoch, rank, verb, plan_id, message, deadline } => {
                    self.send(epoch, rank, verb, plan_id, message, deadline);
                }
                Action::Load { epoch, deadline } => self.load(epoch, deadline),
                Action::Run { plan, deadline, deliver } => self.run_plan(*plan, deadline, deliver),
                Action::Abort { reason } => self.engine.abort(&reason),
                Action::RelayNoop(noop) => self.publish(subjects::tp_noop(&self.cell, noop.mesh_epoch), noop),
                Action::PublishShutdown(shutdown) => {
                    let subject = subjects::tp_shutdown(&self.cell, shutdown.mesh_epoch);
                    if let Err(error) = self.bus.publish(&subject, &shutdown).await {
                        warn!(%error, "the workers were not told to stop");
                    }
                }
                Action::Exit { code, reason } => self.state.ended = Some(Ended { code, reason }),
            }
        }
    }

    fn answer(&mut self, ticket: Ticket, result: Result<Reply, Error>) {
        let outcome = match &result {
            Ok(_) => "ok",
            Err(error) => error.reason.as_str(),
        };
        let action = match &result {
            Ok(Reply::Noop(_)) => "noop",
            Ok(Reply::Hello(_)) => "hello",
            Ok(Reply::Infer(_)) => "infer",
            Ok(Reply::Reset) => "reset",
            Ok(Reply::Shutdown) => "shutdown",
            Ok(Reply::Bye) => "bye",
            Err(_) => "refused",
        };
        metrics::counter!(metric_names::CALLS, "action" => action, "outcome" => outcome).increment(1);
        if let Err(error) = &result {
            debug!(%error, "a call was refused or failed");
        }
        if let Some(reply) = self.state.calls.remove(&ticket) {
            let _ = reply.send(result);
        }
    }

    fn take_epoch(&self) {
        let (key, tx) = (self.key.clone(), self.tx.clone());
        let (world_size, device) = (self.world_size, self.engine.device());
        let opener = Arc::clone(&self.open_epoch);
        tokio::spawn(async move {
            let event = new_epoch(&key, &*opener, world_size, device)
                .await
                .unwrap_or_else(|reason| Event::Machine(Input::EpochLost { reason }));
            let _ = tx.send(event).await;
        });
    }

    fn seek(&self, lease: Lease) {
        let (bus, tx, cell) = (self.bus.clone(), self.tx.clone(), self.cell.clone());
        tokio::spawn(async move {
            let deadline = Deadline::after(Instant::now(), ANSWER);
            let gone = presence::ask(&bus, &cell, lease.controller, deadline).await == Presence::Gone;
            let _ = tx.send(Event::Machine(Input::Sought { lease, gone })).await;
        });
    }

    fn open_link(&self, lease: Lease) {
        let (links, tx) = (Arc::clone(&self.links), self.tx.clone());
        tokio::spawn(async move {
            let opened = tokio::task::spawn_blocking(move || links.open(lease)).await;
            let result = opened.unwrap_or_else(|e| Err(lost_task(&e)));
            let _ = tx.send(Event::Machine(Input::LinkOpened { lease, result })).await;
        });
    }

    fn fetch(&self, plan: Plan, source: Source) {
        let (links, tx, model) = (Arc::clone(&self.links), self.tx.clone(), self.model.clone());
        let plan_id = plan.plan_id;
        tokio::spawn(async move {
            let fetched = tokio::task::spawn_blocking(move || match source {
                Source::Link { lease, infer } => links.fetch(lease, &infer),
                Source::Fixed { seed } => CallTensors::fixed(&model, &plan, seed),
            });
            let result = fetched.await.unwrap_or_else(|e| Err(lost_task(&e)));
            let _ = tx.send(Event::Fetched { plan_id, result }).await;
        });
    }

    fn send(
        &self,
        epoch: MeshEpoch,
        rank: Rank,
        verb: Verb,
        plan_id: PlanId,
        message: Message,
        deadline: Instant,
    ) {
        let (bus, tx, cell) = (self.bus.clone(), self.tx.clone(), self.cell.clone());
        tokio::spawn(async move {
            let deadline = Deadline::after(deadline, Budget::from_millis(0));
            let subject = match verb {
                Verb::Plan => subjects::tp_plan(&cell, epoch, rank),
                Verb::Go => subjects::tp_go(&cell, epoch, rank),
                Verb::Cancel => subjects::tp_cancel(&cell, epoch, rank),
            };
            let answer: Result<Ack, Error> = match &message {
                Message::Plan(request) => bus.request(&subject, &**request, deadline).await,
                Message::Reference(reference) => bus.request(&subject, reference, deadline).await,
            };
            let result = answer.and_then(|ack| check_ack(&ack, rank, plan_id));
            if let Err(error) = &result {
                debug!(%rank, verb = verb.as_str(), %error, "no acknowledgement");
            }
            let _ = tx.send(Event::Machine(Input::Answered { epoch, rank, verb, plan_id, result })).await;
        });
    }

    fn load(&mut self, epoch: MeshEpoch, deadline: Instant) {
        let group = Group {
            rank: Rank::LEADER,
            world_size: self.world_size,
            rendezvous: self.state.rendezvous.take(),
            meet_by: Instant::now() + self.timing.connect,
        };
        let (loaded, tx) = (self.engine.load(group, deadline), self.tx.clone());
        tokio::spawn(async move {
            let result = loaded.await.unwrap_or_else(|_| Err(LoadFailure::Group(engine_gone())));
            let _ = tx.send(Event::Machine(Input::Loaded { epoch, result })).await;
        });
    }

    fn run_plan(&mut self, plan: Plan, deadline: Instant, deliver: Option<Lease>) {
        let (epoch, plan_id) = (plan.mesh_epoch, plan.plan_id);
        let tensors = self.state.fetched.take().filter(|(id, _)| *id == plan_id).map(|(_, tensors)| tensors);
        let ran = self.engine.run(plan, tensors, deadline);
        self.board.note(|activity| activity.began(plan_id));
        let (tx, links, board) = (self.tx.clone(), Arc::clone(&self.links), Arc::clone(&self.board));
        tokio::spawn(async move {
            let ran = ran.await.unwrap_or_else(|_| Err(engine_gone()));
            board.note(|activity| activity.ended(plan_id, ran.as_ref().ok().map(|outcome| outcome.took)));
            let result = match ran {
                Ok(outcome) => {
                    metrics::histogram!(metric_names::GENERATOR_SECONDS).record(outcome.took.as_secs_f64());
                    Ok(Box::new(report(outcome, links, deliver).await))
                }
                Err(error) => Err(error),
            };
            let _ = tx.send(Event::Machine(Input::Ran { epoch, plan_id, result })).await;
        });
    }

    fn publish<T: serde::Serialize + Send + Sync + 'static>(&self, subject: String, message: T) {
        let bus = self.bus.clone();
        tokio::spawn(async move {
            if let Err(error) = bus.publish(&subject, &message).await {
                debug!(%error, subject, "not published");
            }
        });
    }
}

async fn new_epoch(
    key: &mpsc::Sender<Order>,
    opener: &dyn EpochOpener,
    world_size: WorldSize,
    device: tch::Device,
) -> Result<Event, String> {
    let (taken, epoch) = oneshot::channel();
    key.send(Order::Take(taken)).await.map_err(|_| "the leader key is lost".to_owned())?;
    let epoch = epoch.await.map_err(|_| "the leader key is lost".to_owned())?;
    let rendezvous = match world_size.get() {
        1 => None,
        ranks => {
            let made = tokio::task::spawn_blocking(move || Rendezvous::create(device, ranks)).await;
            Some(made.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?)
        }
    };
    let endpoint = opener.open(epoch).await.map_err(|e| e.to_string())?;
    Ok(Event::Epoch { epoch, rendezvous, endpoint })
}

/// Writes the latents to the link of whoever asked and puts the report together.
async fn report(outcome: RunOutcome, links: Arc<LinkDesk>, deliver: Option<Lease>) -> RunReport {
    let started = Instant::now();
    let latents_out = match (deliver, outcome.latents) {
        (Some(lease), Some(latents)) => tokio::task::spawn_blocking(move || links.deliver(lease, &latents))
            .await
            .unwrap_or_else(|e| Err(lost_task(&e)))
            .map(Some),
        _ => Ok(None),
    };
    match &latents_out {
        Ok(_) => {}
        // Whoever asked has given its lease back, or lost it, since.
        Err(error) if error.reason == Reason::Fenced => debug!(%error, "nobody wants the result any more"),
        Err(error) => error!(%error, "a result could not be delivered"),
    }
    let finish_us = outcome.timings.finish_us + MeshTimings::micros(started.elapsed());
    RunReport {
        least_calls: outcome.least_calls,
        most_calls: outcome.most_calls,
        digests_agree: outcome.digests_agree,
        digest: outcome.digest,
        timings: MeshTimings { finish_us, ..outcome.timings },
        latents_out,
    }
}

fn check_ack(ack: &Ack, rank: Rank, plan_id: PlanId) -> Result<(), Error> {
    if (ack.rank, ack.plan_id) == (rank, plan_id) {
        return Ok(());
    }
    let text = format!(
        "rank {} acknowledged plan {}: {} of rank {rank} was sent",
        ack.rank, ack.plan_id.0, plan_id.0
    );
    Err(Error::new(Reason::Malformed, text))
}

fn engine_gone() -> Error {
    Error::new(Reason::Internal, "the engine ended")
}

fn lost_task(error: &tokio::task::JoinError) -> Error {
    Error::new(Reason::Internal, "a task of the leader ended early").detail(error.to_string())
}

/// The longest that leaving may take after the machine has ended.
pub(crate) const LEAVE: Duration = Duration::from_secs(1);
