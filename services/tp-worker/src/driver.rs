//! Carries out what the worker machine decides and feeds back what came of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::{Bus, Service};
use collectives::Rendezvous;
use contract::tp::{Ack, Assignment, JoinReply, JoinRequest, Plan, PlanRef, PlanRequest};
use contract::{Budget, CellId, Deadline, Error, MeshEpoch, Reason, subjects};
use engine::{Engine, Group};
use mesh::leader::LoadFailure;
use mesh::worker::{Action, Input, Worker};
use mesh::{ExitCode, Ticket, Timing};
use runtime::{Recorder, metric_names};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::board::Board;
use crate::endpoints::{self, EpochEndpoints};
use crate::liveness;

/// Budget of one request to join.
const JOIN_WAIT: Duration = Duration::from_secs(1);

/// What the leader asks of this rank.
pub(crate) enum Ask {
    Plan(Box<PlanRequest>),
    Go(PlanRef),
    Cancel(PlanRef),
}

/// What reaches the driver.
pub(crate) enum Event {
    Machine(Input),
    Ask {
        ask: Ask,
        reply: oneshot::Sender<Result<Ack, Error>>,
    },
    /// The endpoints of an epoch are served, or could not be.
    Serving {
        epoch: MeshEpoch,
        endpoints: Result<EpochEndpoints, Error>,
    },
}

/// How this rank ended.
pub(crate) struct Ended {
    pub(crate) code: ExitCode,
    pub(crate) reason: String,
}

pub(crate) struct Driver {
    pub(crate) worker: Worker,
    pub(crate) timing: Timing,
    pub(crate) bus: Bus,
    pub(crate) service: Service,
    pub(crate) cell: CellId,
    pub(crate) engine: Engine,
    pub(crate) board: Arc<Board>,
    pub(crate) recorder: Recorder,
    pub(crate) tx: mpsc::Sender<Event>,
    pub(crate) state: DriverState,
}

#[derive(Default)]
pub(crate) struct DriverState {
    next_ticket: u64,
    asked: HashMap<Ticket, oneshot::Sender<Result<Ack, Error>>>,
    endpoints: Option<EpochEndpoints>,
    ended: Option<Ended>,
    /// Asked to stop.
    leaving: bool,
}

impl Driver {
    /// Runs until the machine says that the process is to end.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>, stop: CancellationToken) -> Ended {
        let mut tick = interval(self.timing.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let input = tokio::select! {
                biased;
                () = stop.cancelled(), if !self.state.leaving => Some(Input::Drain),
                event = events.recv() => event.and_then(|event| self.input_of(event)),
                _ = tick.tick() => Some(Input::Tick),
            };
            if let Some(input) = input {
                self.step(input);
            }
            if let Some(ended) = self.state.ended.take() {
                return ended;
            }
        }
    }

    fn step(&mut self, input: Input) {
        let now = Instant::now();
        if !input.is_routine() {
            self.recorder.input(now, &input);
        }
        self.state.leaving |= matches!(input, Input::Drain);
        if let Input::Beat(beat) = &input {
            self.board.note(|activity| activity.beat(beat.rank, now));
        }
        let actions = self.worker.handle(now, input);
        self.board.show(self.worker.view());
        for action in actions {
            if !action.is_routine() {
                self.recorder.action(now, &action);
            }
            // Whoever is about to go misses nobody who goes first.
            let left_behind = self.state.leaving && matches!(action, Action::Leave { .. });
            if let Some(fault) = action.fault().filter(|_| !left_behind) {
                warn!(%fault, "something went wrong in this epoch");
                self.recorder.fault(now, &fault);
            }
            self.perform(action);
        }
    }

    fn input_of(&mut self, event: Event) -> Option<Input> {
        match event {
            Event::Machine(input) => Some(input),
            Event::Ask { ask, reply } => {
                self.state.next_ticket += 1;
                let ticket = Ticket(self.state.next_ticket);
                self.state.asked.insert(ticket, reply);
                Some(match ask {
                    Ask::Plan(request) => Input::Plan { ticket, request },
                    Ask::Go(reference) => Input::Go { ticket, reference },
                    Ask::Cancel(reference) => Input::Cancel { ticket, reference },
                })
            }
            Event::Serving { epoch, endpoints } => {
                if self.board.epoch() != Some(epoch) {
                    return None;
                }
                match endpoints {
                    Ok(endpoints) => {
                        self.state.endpoints = Some(endpoints);
                        None
                    }
                    Err(error) => Some(Input::LeaderGone { epoch, why: format!("endpoints: {error}") }),
                }
            }
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::AskJoin(request) => self.join(request),
            Action::Enter(assignment) => self.enter(assignment),
            Action::Load { assignment, deadline } => self.load(&assignment, deadline),
            Action::Answer { ticket, result } => {
                if let Err(error) = &result {
                    debug!(%error, "nack");
                }
                if let Some(reply) = self.state.asked.remove(&ticket) {
                    let _ = reply.send(result);
                }
            }
            Action::Run { plan, deadline } => self.run_plan(*plan, deadline),
            Action::Abort { reason } => self.engine.abort(&reason),
            // The liveness thread sees on the board that the epoch is over, says why, and closes.
            Action::Leave { .. } => {
                if let Some(endpoints) = &mut self.state.endpoints {
                    endpoints.leave();
                }
            }
            Action::Exit { code, reason } => self.state.ended = Some(Ended { code, reason }),
        }
    }

    fn join(&self, request: JoinRequest) {
        let (bus, cell, tx) = (self.bus.clone(), self.cell.clone(), self.tx.clone());
        tokio::spawn(async move {
            let deadline = Deadline::after(Instant::now(), Budget::from(JOIN_WAIT));
            let answer: Result<JoinReply, Error> =
                bus.request(&subjects::tp_join(&cell), &request, deadline).await;
            let _ = tx.send(Event::Machine(Input::JoinAnswered(answer))).await;
        });
    }

    fn enter(&self, assignment: Assignment) {
        let epoch = assignment.mesh_epoch;
        info!(epoch = epoch.0, rank = assignment.rank.0, world_size = %assignment.world_size, "joined");
        if let Err(error) = liveness::start(assignment.clone(), Arc::clone(&self.board), self.tx.clone()) {
            let gone = Input::LeaderGone { epoch, why: error.to_string() };
            let _ = self.tx.try_send(Event::Machine(gone));
        }
        let (bus, service, cell, tx) =
            (self.bus.clone(), self.service.clone(), self.cell.clone(), self.tx.clone());
        tokio::spawn(async move {
            let endpoints = endpoints::serve(&bus, &service, &cell, &assignment, tx.clone()).await;
            let _ = tx.send(Event::Serving { epoch, endpoints }).await;
        });
    }

    fn load(&self, assignment: &Assignment, deadline: Instant) {
        let (epoch, tx) = (assignment.mesh_epoch, self.tx.clone());
        let rendezvous = Rendezvous::from_bytes(&assignment.collective);
        let group = rendezvous.map(|rendezvous| Group {
            rank: assignment.rank,
            world_size: assignment.world_size,
            rendezvous: Some(rendezvous),
            meet_by: Instant::now() + self.timing.connect,
        });
        let loaded = group.map(|group| self.engine.load(group, deadline));
        tokio::spawn(async move {
            let result = match loaded {
                Ok(loaded) => loaded.await.unwrap_or_else(|_| Err(LoadFailure::Group(engine_gone()))),
                Err(error) => Err(LoadFailure::Group(Error::new(Reason::Malformed, error.to_string()))),
            };
            let _ = tx.send(Event::Machine(Input::Loaded { epoch, result })).await;
        });
    }

    fn run_plan(&self, plan: Plan, deadline: Instant) {
        let (epoch, plan_id) = (plan.mesh_epoch, plan.plan_id);
        let (ran, tx, board) =
            (self.engine.run(plan, None, deadline), self.tx.clone(), Arc::clone(&self.board));
        board.note(|activity| activity.began(plan_id));
        tokio::spawn(async move {
            let ran = ran.await.unwrap_or_else(|_| Err(engine_gone()));
            board.note(|activity| activity.ended(plan_id, ran.as_ref().ok().map(|outcome| outcome.took)));
            let result = ran.map(|outcome| {
                metrics::histogram!(metric_names::GENERATOR_SECONDS).record(outcome.took.as_secs_f64());
            });
            let _ = tx.send(Event::Machine(Input::Ran { epoch, plan_id, result })).await;
        });
    }
}

fn engine_gone() -> Error {
    Error::new(Reason::Internal, "the engine ended")
}
