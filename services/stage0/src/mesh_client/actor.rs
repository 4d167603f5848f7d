//! The actor: requests, answers and tensors move here; nothing is decided.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bus::Bus;
use contract::envelope::{Action as Ask, HelloReply, Reply, ResultV1};
use contract::error::{Class, Error, Reason};
use contract::ids::{CallId, CellId, InstanceId};
use contract::model::ModelInfo;
use contract::status::LinkState;
use contract::{Budget, Deadline, subjects};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use latents::{Condition, LatentLink};
use mesh::controller::{Action, Controller, Input};
use mesh::{DigestCache, Ticket, Timing};
use runtime::{ExitCode, Recorder, Shutdown, metric_names};
use tch::Device;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use super::transfer::Placed;
use super::{Done, Job, MeshHandle, MeshView, Order, Outcome};
use crate::call_budget::CallBudget;
use crate::cell::Cell;

/// Conditionings that the mesh is taken to hold. It says so when it does not, and gets the tensor then.
const CONDITIONINGS: usize = 8;
/// Orders that may wait.
const ORDERS: usize = 4;
/// Added to a call's budget for the way to it and back.
const SLACK: Duration = Duration::from_secs(2);

pub(crate) struct Settings {
    pub cell_id: CellId,
    pub instance: InstanceId,
    pub model: ModelInfo,
    /// The one that opens a link of device memory.
    pub device: Device,
    pub budget: CallBudget,
    /// Jobs that may wait: one for each session.
    pub sessions: u32,
    pub recorder: Recorder,
}

/// Starts the actor. It ends with [`MeshHandle::bye`] or with the last handle.
pub(crate) fn start(settings: Settings, bus: Bus, cell: Cell, shutdown: Shutdown) -> MeshHandle {
    let (jobs_in, jobs) = mpsc::channel(settings.sessions.max(1) as usize);
    let (orders_in, orders) = mpsc::channel(ORDERS);
    let view = MeshView {
        waiting_for: Some("mesh: no leader".to_owned()),
        lease: None,
        attachment: 0,
        session_slots: 0,
        patience: settings.budget.budget() + SLACK,
        link: LinkState::Closed,
        running: None,
        last_call: None,
        calls: None,
        budget: settings.budget.budget(),
    };
    let (view_in, view) = watch::channel(view);
    let actor = Actor {
        controller: Controller::new(settings.instance, Timing::default()),
        settings,
        bus,
        cell,
        shutdown,
        link: None,
        known: DigestCache::new(CONDITIONINGS),
        current: None,
        last_call: None,
        tickets: 0,
        doubt: None,
        refused: None,
        attachment: 0,
        session_slots: 0,
        answers: FuturesUnordered::new(),
        view: view_in,
    };
    tokio::spawn(actor.run(jobs, orders));
    MeshHandle { jobs: jobs_in, orders: orders_in, view }
}

struct Current {
    ticket: Ticket,
    placed: Placed,
    sent: Instant,
    /// The mesh did not hold the conditioning, so the job is on its second try.
    retried: bool,
}

type Answer = (CallId, Result<Reply, Error>);

struct Actor {
    settings: Settings,
    controller: Controller,
    bus: Bus,
    cell: Cell,
    shutdown: Shutdown,
    link: Option<Box<dyn LatentLink>>,
    known: DigestCache<()>,
    current: Option<Current>,
    /// The last INFER under the lease.
    last_call: Option<CallId>,
    tickets: u64,
    /// A call failed then in a way that leaves open whether the mesh still stands.
    doubt: Option<Instant>,
    /// Why there is no lease.
    refused: Option<Error>,
    /// Leases taken so far.
    attachment: u64,
    session_slots: u32,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    view: watch::Sender<MeshView>,
}

impl Actor {
    async fn run(
        mut self,
        mut jobs: mpsc::Receiver<Job>,
        mut orders: mpsc::Receiver<(Order, oneshot::Sender<()>)>,
    ) {
        let mut tick = tokio::time::interval(Timing::default().tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let free = self.current.is_none() && self.controller.quarantined().is_none();
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some((Order::Shutdown { reason }, done)) => {
                        self.step(Input::Shutdown { reason });
                        self.drain_answers().await;
                        let _ = done.send(());
                    }
                    Some((Order::Bye, done)) => {
                        self.step(Input::Bye);
                        self.drain_answers().await;
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                },
                Some((call, result)) = self.answers.next(), if !self.answers.is_empty() => {
                    self.step(Input::Answered { call, result: Box::new(result) });
                }
                _ = tick.tick() => self.tick(),
                Some(job) = jobs.recv(), if free => self.begin(job, false),
            }
            self.show();
        }
    }

    /// Waits for what is under way; each request has its own deadline.
    async fn drain_answers(&mut self) {
        while let Some((call, result)) = self.answers.next().await {
            self.step(Input::Answered { call, result: Box::new(result) });
        }
    }

    fn tick(&mut self) {
        if let Some(Condition::Failed(error)) = self.link.as_ref().map(|link| link.condition()) {
            warn!(%error, detail = error.detail, "the link to the mesh has failed");
            self.step(Input::LinkFailed { error });
        }
        if let Some(epoch) = self.cell.leader(Instant::now()).and_then(|leader| leader.epoch) {
            self.step(Input::Mesh { epoch });
        }
        self.step(Input::Tick);
    }

    fn begin(&mut self, job: Job, retried: bool) {
        let attached = self.controller.attached().is_some();
        let open = self.link.as_ref().is_some_and(|link| link.condition() == Condition::Open);
        let Some(link) = self.link.as_deref_mut().filter(|_| attached && open) else {
            let text = format!("the mesh takes no calls: {}", self.waiting_for().unwrap_or_default());
            job.deliver(Outcome::failed(Error::new(Reason::Recovering, text)));
            return;
        };
        let digest = job.infer.conditioning.clone();
        let with_conditioning = retried || self.known.touch(&digest).is_none();
        let placed = match Placed::write(job, link, with_conditioning) {
            Ok(placed) => placed,
            Err(refused) => {
                let (job, mut error) = *refused;
                if error.reason == Reason::Fenced {
                    // The leader has closed the link with its epoch, which is news of the mesh and not of this stage0.
                    error.reason = Reason::Recovering;
                }
                self.doubt = Some(Instant::now());
                self.show();
                return job.deliver(Outcome::failed(error));
            }
        };
        self.known.insert(digest, ());
        self.tickets += 1;
        let (ticket, sent) = (Ticket(self.tickets), Instant::now());
        let infer = Box::new(placed.job.infer.clone());
        let deadline = sent + self.settings.budget.budget();
        self.current = Some(Current { ticket, placed, sent, retried });
        self.step(Input::Infer { ticket, infer, deadline });
    }

    fn step(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = Instant::now();
            if !input.is_routine() {
                self.settings.recorder.input(now, &input);
            }
            for action in self.controller.handle(now, input) {
                if !action.is_routine() {
                    self.settings.recorder.action(now, &action);
                }
                if let Some(error) = action.fault() {
                    self.settings.recorder.fault(now, error);
                }
                inputs.extend(self.perform(action));
            }
        }
    }

    fn perform(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::Send { envelope, deadline } => {
                if matches!(envelope.action, Ask::Infer(_)) {
                    self.last_call = Some(envelope.call_id);
                }
                let subject = subjects::mesh_call(&self.settings.cell_id, envelope.mesh_epoch);
                let left = Budget::from(deadline.saturating_duration_since(Instant::now()));
                let deadline = Deadline::after(Instant::now(), left);
                let bus = self.bus.clone();
                self.answers.push(Box::pin(async move {
                    let started = Instant::now();
                    let result = bus.request::<_, Reply>(&subject, &envelope, deadline).await;
                    measure(&envelope.action, &result, started.elapsed());
                    (envelope.call_id, result)
                }));
            }
            Action::Attach(hello) => {
                let result = self.attach(&hello);
                return Some(Input::Attached { lease: hello.lease, result });
            }
            Action::Ready(hello) => {
                info!(lease = %hello.lease, world_size = %hello.world_size, "the mesh takes calls");
                self.session_slots = hello.session_slots;
                self.attachment += 1;
                self.doubt = None;
                self.refused = None;
            }
            Action::Refused(error) => {
                self.link = None;
                self.refused = Some(error);
            }
            Action::Lost(error) => {
                if error.reason == Reason::SessionEnded {
                    info!("the lease on the mesh is given back");
                } else {
                    warn!(%error, "the lease on the mesh is lost");
                }
                self.link = None;
                self.last_call = None;
                self.refused = Some(error);
            }
            Action::Deliver { ticket, result } => self.deliver(ticket, result),
            Action::Quarantine { call } => {
                warn!(%call, "a call went unanswered: its link slots are in quarantine");
                if let (Some(link), Some(current)) = (&mut self.link, &self.current) {
                    link.quarantine(&current.placed.slots());
                }
            }
            Action::Release { call } => {
                info!(%call, "the mesh is done with the call");
                if let Some(link) = &mut self.link {
                    link.unquarantine_all();
                }
            }
            Action::Exit { code, reason } => {
                error!(reason, "fenced off");
                self.shutdown.begin(ExitCode::from_code(code.code().into()), reason);
            }
        }
        None
    }

    /// The lease is granted: what it commands must be the model that the latents here are for.
    fn attach(&mut self, hello: &HelloReply) -> Result<(), Error> {
        let (own, theirs) = (&self.settings.model.fingerprint, &hello.model.fingerprint);
        if own != theirs {
            let text = format!("the mesh holds model {theirs} ({}), stage0 {own}", hello.model.name);
            self.shutdown.begin(ExitCode::Config, format!("model.weights: {text}"));
            return Err(Error::new(Reason::WeightsMismatch, text));
        }
        self.known.clear();
        self.link = Some(latents::open(&hello.link, self.settings.device)?);
        Ok(())
    }

    fn deliver(&mut self, ticket: Ticket, result: Result<Box<ResultV1>, Error>) {
        let Some(mut current) = self.current.take_if(|current| current.ticket == ticket) else { return };
        let call = current.sent.elapsed();
        let quarantined = self.controller.quarantined().is_some();
        if result.as_ref().is_err_and(|error| error.class() == Class::DeadlineExceeded) {
            self.settings.budget.ran_out();
        }
        let result = match (result, self.link.as_deref_mut()) {
            (Ok(result), Some(link)) => waiting(|| current.placed.read(link, &result)).map(|latents| {
                self.settings.budget.record(call);
                Box::new(Done { latents, result, link: current.placed.took, call })
            }),
            (Ok(_), None) => Err(Error::new(Reason::CallAborted, "the link to the mesh is gone")),
            (Err(error), _) => Err(error),
        };
        if let Some(link) = self.link.as_deref_mut().filter(|_| !quarantined) {
            current.placed.give_back(link);
        }
        match result {
            Err(error) if error.reason == Reason::UnknownConditioning && !current.retried => {
                self.known.clear();
                self.begin(current.placed.job, true);
            }
            result => {
                if result.as_ref().is_err_and(|e| {
                    matches!(e.class(), Class::Aborted | Class::Unavailable | Class::Conflict)
                }) {
                    self.doubt = Some(Instant::now());
                }
                self.show();
                current.placed.job.deliver(Outcome { result });
            }
        }
    }

    fn show(&self) {
        let budget = self.settings.budget.budget();
        let open = self.link.as_ref().is_some_and(|link| link.condition() == Condition::Open);
        let link = match (open, self.controller.quarantined()) {
            (false, _) => LinkState::Closed,
            (true, None) => LinkState::Open,
            (true, Some(_)) => LinkState::Quarantined,
        };
        let view = MeshView {
            waiting_for: self.waiting_for(),
            lease: self.controller.attached().map(|hello| hello.lease),
            attachment: self.attachment,
            session_slots: self.session_slots,
            patience: budget * (self.settings.sessions + 1) + SLACK,
            link,
            running: self.controller.running(),
            last_call: self.last_call,
            calls: self.settings.budget.times(),
            budget,
        };
        self.view.send_if_modified(|shown| {
            let changed = *shown != view;
            *shown = view;
            changed
        });
    }

    fn waiting_for(&self) -> Option<String> {
        if !self.bus.state().borrow().is_connected() {
            return Some("broker".to_owned());
        }
        let Some(leader) = self.cell.leader(Instant::now()) else {
            return Some("mesh: no leader".to_owned());
        };
        if !leader.takes_calls() {
            let what = leader.waiting_for.unwrap_or_else(|| leader.phase.as_str().to_owned());
            return Some(format!("mesh: {what}"));
        }
        if self.controller.attached().is_none() {
            let why = self.refused.as_ref().map_or_else(|| "asked for".to_owned(), ToString::to_string);
            return Some(format!("mesh: lease ({why})"));
        }
        match self.link.as_ref().map(|link| link.condition()) {
            None | Some(Condition::Open) => {}
            Some(Condition::Opening) => return Some("mesh: link".to_owned()),
            Some(Condition::Failed(error)) => return Some(format!("mesh: link ({error})")),
        }
        if self.doubt.is_some_and(|since| leader.at <= since) {
            return Some("mesh: its state after a fault".to_owned());
        }
        self.controller.quarantined().map(|call| format!("mesh: end of call {call}"))
    }
}

/// What a link between hosts does waits for its other end: other tasks of the runtime go on meanwhile.
fn waiting<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn measure(action: &Ask, result: &Result<Reply, Error>, took: Duration) {
    let outcome = result.as_ref().map_or_else(|error| error.reason.as_str(), |_| "ok");
    let action = action.as_str();
    metrics::counter!(metric_names::CALLS, "action" => action, "outcome" => outcome).increment(1);
    metrics::histogram!(metric_names::CALL_SECONDS, "action" => action).record(took.as_secs_f64());
}
