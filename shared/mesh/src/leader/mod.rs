//! Rank 0: forms the mesh, admits the controller's calls, and leads every run in lockstep.
//!
//! `Forming → Loading → Warming → Ready ⇄ Busy → Draining → Stopped`, and from any of them `Faulted → Forming`. A fault
//! ends the epoch: the running call is answered, every collective aborted, and a new epoch is taken once the engine is
//! idle. Weights stay.

mod calls;
mod forming;
mod io;
mod members;
mod outcome;
mod run;
mod view;

use std::fmt;
use std::time::{Duration, Instant};

use contract::envelope::{Lease, MeshPhase, Reply};
use contract::model::{ModelInfo, TpPlan};
use contract::tp::{Parity, PlanId};
use contract::{CallId, Digest, Error, InstanceId, MeshEpoch, Reason, WorldSize};

pub use self::io::{Action, Input, LoadFailure, Message, RunReport, Source, Verb};
use self::members::Members;
use self::run::Run;
pub use self::view::View;
use crate::lease::LeaseBook;
use crate::liveness::OwnTick;
use crate::slots::Slots;
use crate::{DigestCache, ExitCode, Ticket, Timing, invariants};

/// Formations that failed one after another before only a new process is believed to help.
const MAX_FAULTS_IN_A_ROW: u32 = 5;
/// Requests that may wait for one call: the first, and re-asks whose answers were lost.
const MAX_WAITERS: usize = 8;

#[derive(Clone)]
pub struct LeaderConfig {
    pub instance: InstanceId,
    pub parity: Parity,
    /// The plan in effect, chosen or not.
    pub tp_plan: TpPlan,
    pub world_size: WorldSize,
    /// KV slots for sessions; one more is reserved for warm-up and canary runs.
    pub session_slots: u32,
    pub model: ModelInfo,
    /// Conditioning embeddings that every rank keeps.
    pub conditionings: usize,
    /// Warm-up chunks before the canary: enough to fill the KV window and pass one eviction.
    pub warm_up_chunks: u32,
    pub timing: Timing,
}

impl fmt::Debug for LeaderConfig {
    /// What tells one leader from another: the rest never changes, and a machine is printed often.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaderConfig").field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// The state machine of rank 0.
#[derive(Clone, Debug)]
pub struct Leader {
    config: LeaderConfig,
    phase: MeshPhase,
    phase_since: Instant,
    epoch: Option<Formation>,
    last_epoch: Option<MeshEpoch>,
    members: Members,
    own_tick: OwnTick,
    lease: LeaseBook,
    hello: Option<Hello>,
    kept: Option<Kept>,
    slots: Slots,
    conditionings: DigestCache<()>,
    run: Option<Run>,
    next_plan: PlanId,
    engine: Option<Job>,
    warmed: u32,
    /// The engine ran warm-up chunks in an earlier epoch of this process and all workers did too.
    canary: Option<Digest>,
    formed_before: bool,
    faults_in_a_row: u32,
    last_fault: Option<String>,
    draining: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Formation {
    epoch: MeshEpoch,
    collective: Vec<u8>,
    liveness: String,
}

/// A HELLO whose link is being opened, or whose reply is kept for a re-ask.
#[derive(Clone, Debug)]
struct Hello {
    lease: Lease,
    call: CallId,
    digest: Digest,
    waiters: Vec<Ticket>,
    reply: Option<Reply>,
}

/// The outcome of the last INFER, for a re-ask.
#[derive(Clone, Debug)]
struct Kept {
    lease: Lease,
    call: CallId,
    digest: Digest,
    outcome: Result<Reply, Error>,
}

/// What the executor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Load(MeshEpoch),
    Run(MeshEpoch, PlanId),
}

type Actions = Vec<Action>;

impl Leader {
    /// The machine and its first actions.
    #[must_use]
    pub fn new(now: Instant, config: LeaderConfig) -> (Self, Vec<Action>) {
        let leader = Self {
            phase: MeshPhase::Forming,
            phase_since: now,
            epoch: None,
            last_epoch: None,
            members: Members::default(),
            own_tick: OwnTick::new(config.timing.tick),
            lease: LeaseBook::new(config.timing.lease_ttl, config.timing.absence),
            hello: None,
            kept: None,
            slots: Slots::new(config.session_slots),
            conditionings: DigestCache::new(config.conditionings),
            run: None,
            next_plan: PlanId(1),
            engine: None,
            warmed: 0,
            canary: None,
            formed_before: false,
            faults_in_a_row: 0,
            last_fault: None,
            draining: None,
            config,
        };
        (leader, vec![Action::TakeEpoch])
    }

    /// One step. Every input is accepted in every state.
    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Action> {
        let mut out = Vec::new();
        if self.phase == MeshPhase::Stopped {
            self.refuse_all(&input, &mut out);
            return out;
        }
        match input {
            Input::Tick => self.tick(now, &mut out),
            Input::EpochTaken { epoch, collective, liveness } => {
                self.epoch_taken(now, Formation { epoch, collective, liveness }, &mut out);
            }
            Input::EpochLost { reason } => self.exit(now, ExitCode::NeedsRestart, reason, &mut out),
            Input::Join { ticket, request } => {
                let result = self.join(now, &request, &mut out);
                out.push(Action::AnswerJoin { ticket, result });
            }
            Input::Call { ticket, envelope, digest, deadline } => {
                self.call(now, ticket, *envelope, digest, deadline, &mut out);
            }
            Input::Sought { lease, gone } => self.lease.sought(now, lease, gone),
            Input::LinkOpened { lease, result } => self.link_opened(lease, result, &mut out),
            Input::Fetched { plan_id, result } => self.fetched(now, plan_id, result, &mut out),
            Input::Answered { epoch, rank, verb, plan_id, result } if self.is_current(epoch) => {
                self.answered(now, rank, verb, plan_id, result, &mut out);
            }
            Input::Answered { .. } => {}
            Input::Loaded { epoch, result } => self.loaded(now, epoch, result, &mut out),
            Input::Ran { epoch, plan_id, result } => self.ran(now, epoch, plan_id, result, &mut out),
            Input::Beat(beat) => self.beat(now, &beat, &mut out),
            Input::Gone { epoch, rank, instance, why } => {
                if self.is_current(epoch) && self.members.is_member(rank, instance) {
                    self.rank_lost(now, format!("rank {rank}: {why}"), &mut out);
                }
            }
            Input::Drain => self.drain(now, &mut out),
        }
        out
    }

    fn tick(&mut self, now: Instant, out: &mut Actions) {
        self.members.discount(self.own_tick.late_by(now));
        if let Some((rank, connected, silence)) = self.members.silent(now) {
            let what = if connected { "no beat" } else { "no liveness connection" };
            self.rank_lost(now, format!("rank {rank}: {what} for {} ms", silence.as_millis()), out);
        }
        self.tick_load(now, out);
        self.tick_run(now, out);
        if self.phase == MeshPhase::Faulted {
            let waited = now.saturating_duration_since(self.phase_since);
            // Ranks that meet for the first time cannot be aborted; that has a short bound of its own.
            let timing = self.config.timing;
            let meeting =
                if matches!(self.engine, Some(Job::Load(_))) { timing.connect } else { Duration::ZERO };
            if self.engine.is_some() && waited > timing.abort + meeting {
                let reason = "the engine did not come back from an abort".to_owned();
                self.exit(now, ExitCode::NeedsRestart, reason, out);
            }
        }
        let drained = self
            .draining
            .map_or(Ok(()), |since| invariants::drain_ends(now, since, self.config.timing.drain));
        if drained.is_err() && self.phase != MeshPhase::Stopped {
            self.end_run(Err(cut_off()), out);
            out.push(Action::Abort { reason: "shutting down".to_owned() });
            self.exit(now, ExitCode::Asked, "asked to stop".to_owned(), out);
        }
    }

    fn drain(&mut self, now: Instant, out: &mut Actions) {
        if self.draining.is_none() {
            self.draining = Some(now);
        }
        if self.run.as_ref().is_some_and(Run::is_call) {
            self.set_phase(now, MeshPhase::Draining);
        } else {
            self.exit(now, ExitCode::Asked, "asked to stop".to_owned(), out);
        }
    }

    fn rank_lost(&mut self, now: Instant, text: String, out: &mut Actions) {
        self.fault(now, &Error::new(Reason::RankLost, text), out);
    }

    /// Ends the epoch: the running call gets `error`, and once the engine is idle a new epoch is taken.
    fn fault(&mut self, now: Instant, error: &Error, out: &mut Actions) {
        if matches!(self.phase, MeshPhase::Faulted | MeshPhase::Stopped) {
            return;
        }
        self.faults_in_a_row += 1;
        self.last_fault = Some(error.to_string());
        self.end_epoch(now, error, out);
        if self.draining.is_some() {
            self.exit(now, ExitCode::Asked, "asked to stop".to_owned(), out);
        } else if self.faults_in_a_row > MAX_FAULTS_IN_A_ROW {
            let reason = format!("{MAX_FAULTS_IN_A_ROW} formations failed in a row, the last with: {error}");
            self.exit(now, ExitCode::NeedsRestart, reason, out);
        } else {
            self.form_again(now, out);
        }
    }

    fn end_epoch(&mut self, now: Instant, error: &Error, out: &mut Actions) {
        self.end_run(Err(error.clone()), out);
        self.end_hello(error, out);
        if self.engine.is_some() {
            out.push(Action::Abort { reason: error.to_string() });
        }
        out.push(Action::CloseEpoch);
        self.lease.release();
        self.slots.clear();
        self.kept = None;
        self.conditionings.clear();
        self.members = Members::default();
        self.epoch = None;
        self.set_phase(now, MeshPhase::Faulted);
    }

    /// Leaves `Faulted` once nothing of the old epoch runs any more.
    fn form_again(&mut self, now: Instant, out: &mut Actions) {
        if self.phase == MeshPhase::Faulted && self.engine.is_none() {
            self.set_phase(now, MeshPhase::Forming);
            out.push(Action::TakeEpoch);
        }
    }

    /// The first reason to end is the one that counts.
    fn exit(&mut self, now: Instant, code: ExitCode, reason: String, out: &mut Actions) {
        if self.phase == MeshPhase::Stopped {
            return;
        }
        self.end_run(Err(cut_off()), out);
        self.end_hello(&draining_error(), out);
        self.set_phase(now, MeshPhase::Stopped);
        out.push(Action::Exit { code, reason });
    }

    fn set_phase(&mut self, now: Instant, phase: MeshPhase) {
        self.phase = phase;
        self.phase_since = now;
    }

    fn is_current(&self, epoch: MeshEpoch) -> bool {
        self.epoch.as_ref().is_some_and(|formation| formation.epoch == epoch)
    }

    fn violated(&mut self, now: Instant, violation: invariants::Violation, out: &mut Actions) {
        self.fault(now, &violation.into(), out);
    }

    /// A stopped leader still answers.
    fn refuse_all(&self, input: &Input, out: &mut Actions) {
        match input {
            Input::Join { ticket, .. } => {
                out.push(Action::AnswerJoin { ticket: *ticket, result: Err(draining_error()) });
            }
            Input::Call { ticket, .. } => {
                out.push(Action::Answer { ticket: *ticket, result: Err(draining_error()) });
            }
            _ => {}
        }
    }
}

/// To whoever waits for a call that has begun.
fn cut_off() -> Error {
    Error::new(Reason::CallAborted, "the mesh stopped before the call had ended")
}

/// To whoever asks for something new.
fn draining_error() -> Error {
    Error::new(Reason::Draining, "the mesh is stopping and takes no new work")
}
