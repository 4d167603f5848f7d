//! A cell in simulated time: one leader, its workers and two controllers, with a network that drops, repeats, delays and
//! so reorders messages, and engines that meet in collectives.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use contract::envelope::{Infer, Lease, MeshPhase, MeshTimings, Reply};
use contract::link::{LinkDescriptor, LinkKind};
use contract::model::{ModelInfo, Size, TpPlan};
use contract::tensor::{Dtype, TensorKey, TensorSpec};
use contract::tp::{Beat, Parity, PlanId};
use contract::{
    CacheEpoch, ChunkIndex, Digest, Error, Generation, InstanceId, LinkSlot, MeshEpoch, Rank, Reason,
    SessionId, SessionSlot, WorldSize,
};
use mesh::controller::{self, Controller};
use mesh::leader::{self, Leader, LeaderConfig, RunReport, Verb};
use mesh::worker::{self, Worker, WorkerConfig};
use mesh::{Ticket, Timing};

pub(crate) const SIZE: Size = Size { width: 128, height: 128 };

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) fn model() -> ModelInfo {
    ModelInfo {
        name: "tiny".into(),
        fingerprint: "aa".into(),
        sizes: vec![SIZE],
        dtype: Dtype::F32,
        latent_channels: 16,
        spatial_stride: 8,
        frames_per_chunk: 3,
        context_frames: 3,
        text_len: 64,
        text_dim: 64,
        recompute: true,
        extra_calls: 0,
        default_steps: vec![1000, 500],
        default_attention_bias: 0.3,
        world_sizes: vec![WorldSize::ONE],
    }
}

pub(crate) fn parity() -> Parity {
    Parity {
        build: "0.1.0".into(),
        model_fingerprint: "aa".into(),
        dtype: Dtype::F32,
        device: "cpu".into(),
        attention_backend: "eager".into(),
        tp_plan: None,
    }
}

pub(crate) fn world(n: u32) -> WorldSize {
    WorldSize::try_from(n).unwrap()
}

pub(crate) fn leader_config(ranks: u32) -> LeaderConfig {
    LeaderConfig {
        instance: InstanceId::random(),
        parity: parity(),
        tp_plan: TpPlan::V1GeneratorOnly,
        world_size: world(ranks),
        session_slots: 2,
        model: model(),
        conditionings: 4,
        warm_up_chunks: 3,
        timing: Timing::default(),
    }
}

pub(crate) fn worker_config() -> WorkerConfig {
    WorkerConfig {
        instance: InstanceId::random(),
        parity: parity(),
        session_slots: 2,
        model: model(),
        conditionings: 4,
        timing: Timing::default(),
    }
}

pub(crate) fn spec(key: TensorKey, shape: &[i64]) -> TensorSpec {
    TensorSpec {
        key,
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        slot: LinkSlot(0),
        byte_offset: 0,
        byte_len: shape.iter().product::<i64>().unsigned_abs() * 4,
        generation: Generation(1),
    }
}

/// Chunk `index` of a session on slot 0, as stage0 would ask for it.
pub(crate) fn infer(session: SessionId, cache_epoch: u64, index: u64) -> Infer {
    let model = model();
    let latents = model.latent_shape(SIZE, 3);
    let recompute = index > 0;
    let mut tensors = vec![
        spec(TensorKey::LatentsIn, &latents),
        spec(TensorKey::ConditioningEmbeds, &model.conditioning_shape()),
    ];
    if recompute {
        tensors.push(spec(TensorKey::ContextFrames, &latents));
    }
    Infer {
        session,
        session_slot: SessionSlot(0),
        chunk_index: ChunkIndex(index),
        cache_epoch: CacheEpoch(cache_epoch),
        size: SIZE,
        current_start_frame: index * 3,
        num_latent_frames: 3,
        denoising_steps: vec![1000, 500],
        do_kv_recompute: recompute,
        init_cache: index == 0,
        reset_kv_cache: false,
        reset_crossattn_cache: false,
        base_seed: 1,
        kv_cache_attention_bias: 0.3,
        noise_scale: None,
        tp_plan: None,
        expected_generator_calls: model.expected_calls(2, recompute),
        conditioning: Digest::of(&[b"prompt"]),
        tensors,
    }
}

pub(crate) fn link() -> LinkDescriptor {
    LinkDescriptor {
        kind: LinkKind::Shm,
        name: "x".into(),
        slots_in: 4,
        slots_out: 4,
        slot_bytes: 1 << 20,
        link_epoch: 1,
    }
}

pub(crate) fn report(calls: u32) -> RunReport {
    RunReport {
        least_calls: calls,
        most_calls: calls,
        digests_agree: true,
        digest: Digest::of(&[b"latents"]),
        timings: MeshTimings::default(),
        latents_out: Ok(Some(spec(TensorKey::LatentsOut, &model().latent_shape(SIZE, 3)))),
    }
}

/// How bad the network is. Per cent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Network {
    pub(crate) drop: u64,
    pub(crate) repeat: u64,
    pub(crate) max_delay_ms: u64,
}

#[derive(Clone, Debug)]
enum Event {
    Leader(leader::Input),
    Worker(usize, worker::Input),
    Controller(usize, controller::Input),
    /// A rank's part of a collective is over, if it still waits.
    Timeout(MeshEpoch, Node, Job),
    Complete(MeshEpoch, Job),
    Beats,
    Status,
    Ticks,
    Ask(usize),
    /// Nobody answered in time.
    Expired(u64, Box<Event>),
    Answer(u64, Answer),
}

#[derive(Clone, Debug)]
enum Answer {
    Join(Result<contract::tp::JoinReply, Error>),
    Call(Box<Result<Reply, Error>>),
    Ack(Result<(), Error>),
}

/// 0: load; else a plan.
type Job = u64;
/// 0: the leader; else worker `n - 1`.
type Node = usize;

/// Where an answer goes: who asked, and until when they wait.
#[derive(Clone, Debug)]
enum Asker {
    Join(usize),
    Controller(usize, contract::CallId),
    Leader(MeshEpoch, Rank, Verb, PlanId),
}

pub(crate) struct Cell {
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    pub(crate) leader: Leader,
    pub(crate) workers: Vec<Worker>,
    alive: Vec<bool>,
    instances: Vec<InstanceId>,
    pub(crate) controllers: Vec<Controller>,
    events: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    random: u64,
    network: Network,
    ranks: u32,
    epoch: u64,
    asked: BTreeMap<u64, Asker>,
    /// Ranks that wait in a collective.
    waiting: BTreeMap<(MeshEpoch, Job), BTreeSet<Node>>,
    poisoned: HashSet<MeshEpoch>,
    acked: BTreeMap<(MeshEpoch, u64), BTreeSet<u32>>,
    member: BTreeMap<usize, (MeshEpoch, Rank)>,
    /// Deadlines of controller calls without an outcome yet.
    calls: BTreeMap<Ticket, Instant>,
    sessions: Vec<(SessionId, u64, u64)>,
    pub(crate) delivered: usize,
    pub(crate) failed: Vec<Error>,
    pub(crate) exits: Vec<String>,
    pub(crate) lease: Option<Lease>,
    expected: BTreeMap<(MeshEpoch, u64), u32>,
}

impl Cell {
    pub(crate) fn new(ranks: u32, controllers: usize, seed: u64, network: Network) -> Self {
        let start = Instant::now();
        let (leader, actions) = Leader::new(start, leader_config(ranks));
        let configs: Vec<WorkerConfig> = (1..ranks).map(|_| worker_config()).collect();
        let mut cell = Self {
            now: start,
            start,
            leader,
            alive: vec![true; configs.len()],
            instances: configs.iter().map(|c| c.instance).collect(),
            workers: configs.into_iter().map(|c| Worker::new(start, c)).collect(),
            controllers: (0..controllers)
                .map(|_| Controller::new(InstanceId::random(), Timing::default()))
                .collect(),
            events: BTreeMap::new(),
            sequence: 0,
            random: seed | 1,
            network,
            ranks,
            epoch: 0,
            asked: BTreeMap::new(),
            waiting: BTreeMap::new(),
            poisoned: HashSet::new(),
            acked: BTreeMap::new(),
            member: BTreeMap::new(),
            calls: BTreeMap::new(),
            sessions: (0..controllers).map(|_| (SessionId::random(), 1, 0)).collect(),
            delivered: 0,
            failed: Vec::new(),
            exits: Vec::new(),
            lease: None,
            expected: BTreeMap::new(),
        };
        for action in actions {
            cell.leader_action(action);
        }
        cell.at(ms(0), Event::Ticks);
        cell.at(ms(0), Event::Beats);
        cell.at(ms(0), Event::Status);
        for c in 0..controllers {
            cell.at(ms(100 + c as u64), Event::Ask(c));
        }
        cell
    }

    pub(crate) fn kill_worker(&mut self, at: usize) {
        self.alive[at] = false;
        self.drop_connection(at, "connection closed");
    }

    pub(crate) fn restart_worker(&mut self, at: usize) {
        let config = worker_config();
        self.instances[at] = config.instance;
        self.workers[at] = Worker::new(self.now, config);
        self.alive[at] = true;
    }

    pub(crate) fn run_until(&mut self, end: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.start + end;
        while let Some(entry) = self.events.first_entry() {
            let at = entry.key().0;
            if at > end {
                return done(self);
            }
            let event = entry.remove();
            self.now = at;
            self.step(event);
            self.check();
            if done(self) {
                return true;
            }
        }
        false
    }

    /// Every call ended by its deadline + 1 s.
    fn check(&self) {
        for (ticket, deadline) in &self.calls {
            assert!(self.now <= *deadline + ms(1000), "call {ticket:?} has not ended in its time");
        }
    }

    fn roll(&mut self, n: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % n.max(1)
    }

    fn at(&mut self, delay: Duration, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + delay, self.sequence), event);
    }

    /// Over the network: lost, once or twice, each copy after its own delay.
    fn send(&mut self, event: &Event) {
        let copies = if self.roll(100) < self.network.drop {
            0
        } else if self.roll(100) < self.network.repeat {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let delay = ms(1 + self.roll(self.network.max_delay_ms));
            self.at(delay, event.clone());
        }
    }

    /// A request that is answered through [`Self::answer`], or by `otherwise` when it ran out of time.
    fn ask(&mut self, asker: Asker, wait: Duration, request: impl Fn(Ticket) -> Event, otherwise: Event) {
        self.sequence += 1;
        let id = self.sequence;
        self.asked.insert(id, asker);
        self.send(&request(Ticket(id)));
        self.at(wait, Event::Expired(id, Box::new(otherwise)));
    }

    fn spent() -> Error {
        Error::new(Reason::BudgetSpent, "no answer")
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Leader(input) => {
                for action in self.leader.handle(self.now, input) {
                    self.leader_action(action);
                }
            }
            Event::Worker(at, input) if self.alive[at] => {
                let gone = matches!(&input, worker::Input::Go { .. });
                for action in self.workers[at].handle(self.now, input) {
                    if matches!(action, worker::Action::Run { .. }) {
                        assert!(gone, "a rank enters a collective without go");
                    }
                    self.worker_action(at, action);
                }
            }
            Event::Worker(..) => {}
            Event::Controller(at, input) => {
                for action in self.controllers[at].handle(self.now, input) {
                    self.controller_action(at, action);
                }
            }
            Event::Timeout(epoch, node, job) => {
                if self.waiting.get(&(epoch, job)).is_some_and(|nodes| nodes.contains(&node)) {
                    self.poison(epoch, &Self::spent());
                }
            }
            Event::Complete(epoch, job) => {
                for node in self.waiting.remove(&(epoch, job)).unwrap_or_default() {
                    self.job_done(epoch, node, job, Ok(()));
                }
            }
            Event::Expired(id, otherwise) => {
                if self.asked.remove(&id).is_some() {
                    self.step(*otherwise);
                }
            }
            Event::Answer(id, answer) => {
                if let Some(asker) = self.asked.remove(&id) {
                    self.answered(asker, answer);
                }
            }
            Event::Beats => {
                self.beats();
                self.at(ms(200), Event::Beats);
            }
            Event::Status => {
                if let Some(epoch) = self.leader.view(self.now).epoch {
                    for c in 0..self.controllers.len() {
                        self.send(&Event::Controller(c, controller::Input::Mesh { epoch }));
                    }
                }
                self.at(ms(500), Event::Status);
            }
            Event::Ticks => {
                self.step(Event::Leader(leader::Input::Tick));
                for w in 0..self.workers.len() {
                    self.step(Event::Worker(w, worker::Input::Tick));
                }
                for c in 0..self.controllers.len() {
                    self.step(Event::Controller(c, controller::Input::Tick));
                }
                self.at(ms(50), Event::Ticks);
            }
            Event::Ask(c) => {
                self.next_call(c);
                let pause = ms(50 + self.roll(200));
                self.at(pause, Event::Ask(c));
            }
        }
    }

    fn next_call(&mut self, c: usize) {
        // stage0 learns from status that the mesh is ready.
        let idle = self.leader.view(self.now).waiting_for.is_none()
            && self.controllers[c].attached().is_some()
            && self.controllers[c].running().is_none()
            && self.controllers[c].quarantined().is_none();
        if !idle {
            return;
        }
        self.sequence += 1;
        let ticket = Ticket(self.sequence);
        let (session, cache_epoch, index) = self.sessions[c];
        let deadline = self.now + ms(1500);
        self.calls.insert(ticket, deadline);
        let infer = Box::new(infer(session, cache_epoch, index));
        self.step(Event::Controller(c, controller::Input::Infer { ticket, infer, deadline }));
    }

    fn beats(&mut self) {
        let members: Vec<(usize, (MeshEpoch, Rank))> = self.member.iter().map(|(w, m)| (*w, *m)).collect();
        for (w, (mesh_epoch, rank)) in members {
            if !self.alive[w] {
                continue;
            }
            let beat = |rank, instance, phase| Beat {
                mesh_epoch,
                rank,
                instance,
                phase,
                busy_ms: None,
                leaving: false,
                fault: None,
            };
            let up = beat(rank, self.instances[w], MeshPhase::Ready);
            self.at(ms(1), Event::Leader(leader::Input::Beat(up)));
            let view = self.leader.view(self.now);
            if view.epoch == Some(mesh_epoch) {
                let down = beat(Rank::LEADER, self.instances[w], view.phase);
                self.at(ms(1), Event::Worker(w, worker::Input::Beat(down)));
            }
        }
    }

    fn drop_connection(&mut self, w: usize, why: &str) {
        if let Some((epoch, rank)) = self.member.remove(&w) {
            let (instance, why) = (self.instances[w], why.to_owned());
            self.at(ms(1), Event::Leader(leader::Input::Gone { epoch, rank, instance, why }));
            self.poison(epoch, &Error::new(Reason::RankLost, format!("rank {rank} left")));
        }
    }

    fn enter(&mut self, epoch: MeshEpoch, node: Node, job: Job, deadline: Instant) {
        if self.poisoned.contains(&epoch) {
            return self.job_done(epoch, node, job, Err(Error::new(Reason::CallAborted, "aborted")));
        }
        let nodes = self.waiting.entry((epoch, job)).or_default();
        nodes.insert(node);
        let complete = nodes.len() == self.ranks as usize;
        let left = deadline.saturating_duration_since(self.now);
        self.at(left, Event::Timeout(epoch, node, job));
        if complete {
            let work = ms(20 + self.roll(60));
            self.at(work, Event::Complete(epoch, job));
        }
    }

    fn poison(&mut self, epoch: MeshEpoch, error: &Error) {
        self.poisoned.insert(epoch);
        let jobs: Vec<_> = self.waiting.keys().filter(|(e, _)| *e == epoch).copied().collect();
        for key in jobs {
            for node in self.waiting.remove(&key).unwrap_or_default() {
                self.job_done(key.0, node, key.1, Err(error.clone()));
            }
        }
    }

    fn job_done(&mut self, epoch: MeshEpoch, node: Node, job: Job, result: Result<(), Error>) {
        let failure = leader::LoadFailure::Group;
        let plan_id = PlanId(job);
        let event = match (node, job) {
            (0, 0) => Event::Leader(leader::Input::Loaded { epoch, result: result.map_err(failure) }),
            (0, _) => {
                let calls = self.expected.get(&(epoch, job)).copied().unwrap_or(0);
                let result = result.map(|()| Box::new(report(calls)));
                Event::Leader(leader::Input::Ran { epoch, plan_id, result })
            }
            (w, 0) => Event::Worker(w - 1, worker::Input::Loaded { epoch, result: result.map_err(failure) }),
            (w, _) => Event::Worker(w - 1, worker::Input::Ran { epoch, plan_id, result }),
        };
        self.at(ms(1), event);
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        self.send(&Event::Answer(ticket.0, answer));
    }

    fn answered(&mut self, asker: Asker, answer: Answer) {
        match (asker, answer) {
            (Asker::Join(w), Answer::Join(result)) => {
                self.step(Event::Worker(w, worker::Input::JoinAnswered(result)));
            }
            (Asker::Controller(c, call), Answer::Call(result)) => {
                self.step(Event::Controller(c, controller::Input::Answered { call, result }));
            }
            (Asker::Leader(epoch, rank, verb, plan_id), Answer::Ack(result)) => {
                if verb == Verb::Plan && result.is_ok() {
                    self.acked.entry((epoch, plan_id.0)).or_default().insert(rank.0);
                }
                self.step(Event::Leader(leader::Input::Answered { epoch, rank, verb, plan_id, result }));
            }
            (asker, answer) => panic!("{answer:?} for {asker:?}"),
        }
    }

    fn leader_action(&mut self, action: leader::Action) {
        use leader::{Action, Input, Message};
        match action {
            Action::TakeEpoch => {
                self.epoch += 1;
                let epoch = MeshEpoch(self.epoch);
                let taken = Input::EpochTaken { epoch, collective: vec![1], liveness: "127.0.0.1:1".into() };
                self.at(ms(20), Event::Leader(taken));
            }
            Action::CloseEpoch => {
                let members: Vec<(usize, MeshEpoch)> = self.member.iter().map(|(w, m)| (*w, m.0)).collect();
                for (w, epoch) in members {
                    let why = "connection closed".to_owned();
                    self.at(ms(1), Event::Worker(w, worker::Input::LeaderGone { epoch, why }));
                }
            }
            Action::AnswerJoin { ticket, result } => self.answer(ticket, Answer::Join(result)),
            Action::Answer { ticket, result } => {
                if let Ok(Reply::Hello(hello)) = &result {
                    assert!(
                        self.lease.is_none_or(|lease| lease.epoch <= hello.lease),
                        "lease epochs only grow"
                    );
                }
                self.answer(ticket, Answer::Call(Box::new(result)));
            }
            Action::OpenLink { lease } => {
                self.lease = Some(lease);
                self.at(ms(2), Event::Leader(Input::LinkOpened { lease, result: Ok(link()) }));
            }
            Action::CloseLink | Action::RelayNoop(_) | Action::PublishShutdown(_) => {}
            Action::Fetch { plan, .. } => {
                let fetched = Input::Fetched { plan_id: plan.plan_id, result: Ok(()) };
                self.at(ms(1), Event::Leader(fetched));
            }
            Action::Send { epoch, rank, verb, plan_id, message, deadline } => {
                let Some(w) = self.member.iter().find(|(_, m)| **m == (epoch, rank)).map(|(w, _)| *w) else {
                    return;
                };
                let request = move |ticket| match (&message, verb) {
                    (Message::Plan(request), _) => {
                        Event::Worker(w, worker::Input::Plan { ticket, request: request.clone() })
                    }
                    (Message::Reference(r), Verb::Go) => {
                        Event::Worker(w, worker::Input::Go { ticket, reference: r.clone() })
                    }
                    (Message::Reference(r), _) => {
                        Event::Worker(w, worker::Input::Cancel { ticket, reference: r.clone() })
                    }
                };
                let wait = deadline.saturating_duration_since(self.now);
                let result = Err(Self::spent());
                let otherwise = Event::Leader(Input::Answered { epoch, rank, verb, plan_id, result });
                self.ask(Asker::Leader(epoch, rank, verb, plan_id), wait, request, otherwise);
            }
            Action::Load { epoch, deadline } => self.enter(epoch, 0, 0, deadline),
            Action::Run { plan, deadline, .. } => {
                let key = (plan.mesh_epoch, plan.plan_id.0);
                let acked = self.acked.get(&key).map_or(0, BTreeSet::len);
                assert_eq!(acked, self.ranks as usize - 1, "go before every rank acknowledged");
                self.expected.insert(key, plan.expected_generator_calls);
                self.enter(plan.mesh_epoch, 0, plan.plan_id.0, deadline);
            }
            Action::Abort { reason } => {
                let epoch = MeshEpoch(self.epoch);
                self.poison(epoch, &Error::new(Reason::CallAborted, reason));
            }
            Action::Exit { reason, .. } => self.exits.push(reason),
        }
    }

    fn worker_action(&mut self, w: usize, action: worker::Action) {
        use worker::{Action, Input};
        match action {
            Action::AskJoin(request) => {
                let ask = |ticket| Event::Leader(leader::Input::Join { ticket, request: request.clone() });
                let otherwise = Event::Worker(w, Input::JoinAnswered(Err(Self::spent())));
                self.ask(Asker::Join(w), ms(250), ask, otherwise);
            }
            Action::Enter(assignment) => {
                self.member.insert(w, (assignment.mesh_epoch, assignment.rank));
            }
            Action::Load { assignment, deadline } => self.enter(assignment.mesh_epoch, w + 1, 0, deadline),
            Action::Answer { ticket, result } => self.answer(ticket, Answer::Ack(result.map(|_| ()))),
            Action::Run { plan, deadline } => {
                self.enter(plan.mesh_epoch, w + 1, plan.plan_id.0, deadline);
            }
            Action::Abort { reason } => {
                if let Some((epoch, _)) = self.member.get(&w).copied() {
                    self.poison(epoch, &Error::new(Reason::CallAborted, reason));
                }
            }
            Action::Leave { reason } => self.drop_connection(w, &reason),
            Action::Exit { reason, .. } => {
                self.exits.push(reason);
                self.kill_worker(w);
            }
        }
    }

    fn controller_action(&mut self, c: usize, action: controller::Action) {
        use controller::{Action, Input};
        match action {
            Action::Send { envelope, deadline } => {
                let call = envelope.call_id;
                let digest = Digest::of(&[&contract::codec::encode(&*envelope).unwrap()]);
                let ask = |ticket| {
                    let (envelope, digest) = (envelope.clone(), digest.clone());
                    Event::Leader(leader::Input::Call { ticket, envelope, digest, deadline })
                };
                let wait = deadline.saturating_duration_since(self.now);
                let result = Box::new(Err(Self::spent()));
                let otherwise = Event::Controller(c, Input::Answered { call, result });
                self.ask(Asker::Controller(c, call), wait, ask, otherwise);
            }
            Action::Attach(hello) => {
                self.at(ms(1), Event::Controller(c, Input::Attached { lease: hello.lease, result: Ok(()) }));
            }
            Action::Ready(_) => self.cut(c),
            Action::Deliver { ticket, result } => {
                assert!(self.calls.remove(&ticket).is_some(), "a call ended twice");
                match result {
                    Ok(_) => {
                        self.delivered += 1;
                        self.sessions[c].2 += 1;
                    }
                    Err(error) => {
                        self.failed.push(error);
                        self.cut(c);
                    }
                }
            }
            Action::Exit { reason, .. } => self.exits.push(reason),
            Action::Refused(_) | Action::Lost(_) | Action::Quarantine { .. } | Action::Release { .. } => {}
        }
    }

    /// A new history after whatever went wrong.
    fn cut(&mut self, c: usize) {
        self.sessions[c].1 += 1;
        self.sessions[c].2 = 0;
    }
}
