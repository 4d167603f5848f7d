//! Ranks 1 and up: join, load, and run what the leader says, once all ranks have said yes.

mod io;
mod plans;

use std::fmt;
use std::time::Instant;

use contract::envelope::MeshPhase;
use contract::model::ModelInfo;
use contract::tp::{Assignment, Beat, JoinReply, JoinRequest, Parity, PlanId};
use contract::{CONTRACT_VERSION, Class, Error, InstanceId, MeshEpoch, Rank, WorldSize};

pub use self::io::{Action, Input};
use self::plans::Lockstep;
use crate::leader::LoadFailure;
use crate::liveness::{OwnTick, Watch};
use crate::{DigestCache, ExitCode, Timing, invariants};

#[derive(Clone)]
pub struct WorkerConfig {
    pub instance: InstanceId,
    pub parity: Parity,
    pub session_slots: u32,
    pub model: ModelInfo,
    /// Conditioning embeddings that every rank keeps.
    pub conditionings: usize,
    pub timing: Timing,
}

impl fmt::Debug for WorkerConfig {
    /// What tells one worker from another: the rest never changes, and a machine is printed often.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerConfig").field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// The state machine of a rank other than 0.
#[derive(Clone, Debug)]
pub struct Worker {
    config: WorkerConfig,
    state: State,
    own_tick: OwnTick,
    /// Any sign of a leader: a join answer or a beat.
    leader: Watch,
    engine: Option<(Job, Instant)>,
    /// The shard in memory, kept over epochs.
    holds: Option<(Rank, WorldSize)>,
    last_fault: Option<String>,
    draining: Option<Instant>,
    epochs_left: Option<MeshEpoch>,
    last_error: Option<Error>,
}

#[derive(Clone, Debug)]
enum State {
    /// No epoch. `asked` is when the outstanding or last request to join was sent.
    Joining {
        asked: Option<Instant>,
        outstanding: bool,
        joined: Option<(u32, WorldSize)>,
    },
    In(Box<Member>),
    /// The epoch was dropped and the engine is not idle yet.
    Leaving {
        since: Instant,
    },
    Stopped,
}

#[derive(Clone, Debug)]
struct Member {
    assignment: Assignment,
    loaded: bool,
    leader_phase: MeshPhase,
    /// Whoever sends this epoch's beats.
    leader: Option<InstanceId>,
    lockstep: Lockstep,
    conditionings: DigestCache<()>,
    watch: Watch,
    busy_since: Option<Instant>,
}

/// What the executor is doing; it has a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Load(MeshEpoch),
    Run(MeshEpoch, PlanId),
}

/// What status, beats and health say about this rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub rank: Option<Rank>,
    pub world_size: Option<WorldSize>,
    pub epoch: Option<MeshEpoch>,
    pub phase: MeshPhase,
    pub busy_since: Option<Instant>,
    pub draining: bool,
    pub waiting_for: Option<String>,
    pub last_fault: Option<String>,
}

type Actions = Vec<Action>;

impl Worker {
    #[must_use]
    pub fn new(now: Instant, config: WorkerConfig) -> Self {
        Self {
            state: State::Joining { asked: None, outstanding: false, joined: None },
            own_tick: OwnTick::new(config.timing.tick),
            leader: Watch::new(now, config.timing.orphan_grace),
            engine: None,
            holds: None,
            last_fault: None,
            draining: None,
            epochs_left: None,
            last_error: None,
            config,
        }
    }

    /// One step. Every input is accepted in every state.
    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Action> {
        let mut out = Vec::new();
        match input {
            Input::Tick => self.tick(now, &mut out),
            Input::JoinAnswered(result) => self.join_answered(now, result, &mut out),
            Input::Plan { ticket, request } => {
                let result = self.plan(&request);
                out.push(Action::Answer { ticket, result });
            }
            Input::Go { ticket, reference } => {
                let result = self.go(now, &reference, &mut out);
                out.insert(0, Action::Answer { ticket, result });
            }
            Input::Cancel { ticket, reference } => {
                let result = self.cancel(&reference);
                out.push(Action::Answer { ticket, result });
            }
            Input::Beat(beat) => self.beat(now, &beat, &mut out),
            Input::LeaderGone { epoch, why } => {
                if self.epoch() == Some(epoch) {
                    self.leave(now, format!("leader: {why}"), &mut out);
                }
            }
            Input::Loaded { epoch, result } => self.loaded(now, epoch, result, &mut out),
            Input::Ran { epoch, plan_id, result } => self.ran(now, epoch, plan_id, result, &mut out),
            Input::Shutdown(shutdown) => {
                // The abort that comes with a shutdown may be faster, and end the epoch first.
                if self.epoch().or(self.epochs_left) == Some(shutdown.mesh_epoch) {
                    self.exit(ExitCode::Asked, format!("shutdown: {}", shutdown.reason), &mut out);
                }
            }
            Input::Drain => {
                self.draining.get_or_insert(now);
                self.exit_if_free(&mut out);
            }
        }
        out
    }

    #[must_use]
    pub fn view(&self) -> View {
        let member = self.member();
        let (phase, waiting_for) = match &self.state {
            State::Joining { joined: Some((joined, world)), .. } => {
                (MeshPhase::Forming, Some(format!("workers {joined}/{}", world.get() - 1)))
            }
            State::Joining { .. } => (MeshPhase::Forming, Some(self.no_leader())),
            State::Leaving { .. } => (MeshPhase::Faulted, Some("recovering".to_owned())),
            State::Stopped => (MeshPhase::Stopped, Some("stopped".to_owned())),
            State::In(member) if !member.loaded => (MeshPhase::Loading, Some("loading".to_owned())),
            State::In(member) => match member.leader_phase {
                MeshPhase::Ready | MeshPhase::Busy if member.busy_since.is_some() => (MeshPhase::Busy, None),
                MeshPhase::Ready | MeshPhase::Busy => (MeshPhase::Ready, None),
                phase => (phase, Some(phase.as_str().to_owned())),
            },
        };
        View {
            rank: member.map(|m| m.assignment.rank),
            world_size: member.map(|m| m.assignment.world_size),
            epoch: self.epoch(),
            phase,
            busy_since: member.and_then(|m| m.busy_since),
            draining: self.draining.is_some(),
            waiting_for,
            last_fault: self.last_fault.clone(),
        }
    }

    fn no_leader(&self) -> String {
        self.last_error.as_ref().map_or_else(|| "leader".to_owned(), |e| format!("leader ({})", e.message))
    }

    fn tick(&mut self, now: Instant, out: &mut Actions) {
        let late = self.own_tick.late_by(now);
        self.leader.discount(late);
        let timing = self.config.timing;
        match &mut self.state {
            State::Stopped => {}
            State::In(member) => {
                member.watch.discount(late);
                if let Some(silence) = member.watch.silent_for(now) {
                    let text = format!("leader: no beat for {} ms", silence.as_millis());
                    self.leave(now, text, out);
                } else if self.engine.is_some_and(|(_, deadline)| now >= deadline) {
                    self.leave(now, "the engine did not keep its deadline".to_owned(), out);
                }
            }
            State::Leaving { since } => {
                if now.saturating_duration_since(*since) > timing.abort + timing.connect {
                    let reason = "the engine did not come back from an abort".to_owned();
                    self.exit(ExitCode::NeedsRestart, reason, out);
                }
            }
            State::Joining { asked, outstanding, .. } => {
                let due = asked.is_none_or(|at| now.saturating_duration_since(at) >= timing.join_retry);
                if due && !*outstanding {
                    *asked = Some(now);
                    *outstanding = true;
                    out.push(Action::AskJoin(JoinRequest {
                        version: CONTRACT_VERSION,
                        instance: self.config.instance,
                        parity: self.config.parity.clone(),
                        holds: self.holds,
                    }));
                }
            }
        }
        if let Some(silence) = self.leader.silent_for(now) {
            let reason = format!("no leader for {} s", silence.as_secs());
            self.exit(ExitCode::Orphaned, reason, out);
        }
        let drained = self.draining.map_or(Ok(()), |since| invariants::drain_ends(now, since, timing.drain));
        if drained.is_err() && !matches!(self.state, State::Stopped) {
            out.push(Action::Abort { reason: "shutting down".to_owned() });
            self.exit(ExitCode::Asked, "asked to stop".to_owned(), out);
        }
    }

    fn join_answered(&mut self, now: Instant, result: Result<JoinReply, Error>, out: &mut Actions) {
        let State::Joining { outstanding, joined, .. } = &mut self.state else { return };
        *outstanding = false;
        match result {
            Ok(JoinReply::Waiting { joined: count, world_size }) => {
                *joined = Some((count, world_size));
                self.leader.heard(now, self.config.timing.orphan_grace);
            }
            Ok(JoinReply::Assigned(assignment)) => {
                self.leader.heard(now, self.config.timing.orphan_grace);
                // An answer that was long under way: that epoch is the one just dropped.
                if self.epochs_left.is_none_or(|left| assignment.mesh_epoch > left) {
                    self.enter(now, assignment, out);
                }
            }
            Err(error) => match error.class() {
                // The leader refuses this worker for good: no restart mends it.
                Class::Conflict | Class::Unsupported | Class::InvalidArgument if !error.retryable() => {
                    self.exit(ExitCode::Configuration, error.to_string(), out);
                }
                Class::Conflict => {
                    self.leader.heard(now, self.config.timing.orphan_grace);
                    self.last_error = Some(error);
                }
                _ => self.last_error = Some(error),
            },
        }
    }

    fn enter(&mut self, now: Instant, assignment: Assignment, out: &mut Actions) {
        let epoch = assignment.mesh_epoch;
        let timing = self.config.timing;
        let deadline = now + timing.load;
        self.engine = Some((Job::Load(epoch), deadline));
        out.push(Action::Enter(assignment.clone()));
        out.push(Action::Load { assignment: assignment.clone(), deadline });
        self.state = State::In(Box::new(Member {
            assignment,
            loaded: false,
            leader_phase: MeshPhase::Loading,
            leader: None,
            lockstep: Lockstep::default(),
            conditionings: DigestCache::new(self.config.conditionings),
            watch: Watch::new(now, timing.watchdog),
            busy_since: None,
        }));
    }

    fn beat(&mut self, now: Instant, beat: &Beat, out: &mut Actions) {
        if self.epoch() != Some(beat.mesh_epoch) {
            return;
        }
        if let State::In(member) = &mut self.state {
            if let Err(violation) =
                invariants::one_leader_per_epoch(beat.mesh_epoch, member.leader, beat.instance)
            {
                return self.leave(now, violation.to_string(), out);
            }
            member.leader = Some(beat.instance);
            member.watch.heard(now, self.config.timing.watchdog);
            member.leader_phase = beat.phase;
        }
        self.leader.heard(now, self.config.timing.orphan_grace);
        if beat.phase == MeshPhase::Faulted {
            let why = beat.fault.as_deref().unwrap_or("faulted");
            self.leave(now, format!("leader: {why}"), out);
        }
    }

    fn loaded(&mut self, now: Instant, epoch: MeshEpoch, result: Result<(), LoadFailure>, out: &mut Actions) {
        self.job_done(Job::Load(epoch));
        if let Err(LoadFailure::Stuck(error)) = &result {
            return self.exit(ExitCode::NeedsRestart, error.to_string(), out);
        }
        if self.epoch() != Some(epoch) {
            return self.join_again(out);
        }
        match result {
            Ok(()) => {
                if let State::In(member) = &mut self.state {
                    member.loaded = true;
                    self.holds = Some((member.assignment.rank, member.assignment.world_size));
                }
            }
            Err(LoadFailure::Group(error)) => self.leave(now, error.to_string(), out),
            Err(LoadFailure::Peer(error)) if self.holds.is_some() => self.leave(now, error.to_string(), out),
            Err(failure) => {
                let no_room = matches!(failure, LoadFailure::NoRoom(_));
                let code = if no_room { ExitCode::Configuration } else { ExitCode::Failed };
                self.exit(code, format!("loading failed: {}", failure.error()), out);
            }
        }
    }

    fn ran(
        &mut self,
        now: Instant,
        epoch: MeshEpoch,
        plan_id: PlanId,
        result: Result<(), Error>,
        out: &mut Actions,
    ) {
        self.job_done(Job::Run(epoch, plan_id));
        if self.epoch() != Some(epoch) {
            return self.join_again(out);
        }
        if let State::In(member) = &mut self.state {
            member.busy_since = None;
            member.lockstep.ran(plan_id);
        }
        if let Err(error) = result {
            self.leave(now, error.to_string(), out);
        }
    }

    /// Drops the epoch; the shard stays.
    fn leave(&mut self, now: Instant, reason: String, out: &mut Actions) {
        if !matches!(self.state, State::In(_)) {
            return;
        }
        self.epochs_left = self.epoch();
        if self.engine.is_some() {
            out.push(Action::Abort { reason: reason.clone() });
        }
        out.push(Action::Leave { reason: reason.clone() });
        self.last_fault = Some(reason);
        self.state = State::Leaving { since: now };
        self.join_again(out);
    }

    fn join_again(&mut self, out: &mut Actions) {
        if matches!(self.state, State::Leaving { .. }) && self.engine.is_none() {
            self.state = State::Joining { asked: None, outstanding: false, joined: None };
        }
        self.exit_if_free(out);
    }

    /// A member that was asked to stop waits for its leader to end the epoch, so that no call is lost.
    fn exit_if_free(&mut self, out: &mut Actions) {
        if self.draining.is_some() && self.member().is_none() && self.engine.is_none() {
            self.exit(ExitCode::Asked, "asked to stop".to_owned(), out);
        }
    }

    fn exit(&mut self, code: ExitCode, reason: String, out: &mut Actions) {
        if !matches!(self.state, State::Stopped) {
            self.state = State::Stopped;
            out.push(Action::Exit { code, reason });
        }
    }

    fn job_done(&mut self, job: Job) {
        if self.engine.is_some_and(|(running, _)| running == job) {
            self.engine = None;
        }
    }

    fn member(&self) -> Option<&Member> {
        match &self.state {
            State::In(member) => Some(member),
            _ => None,
        }
    }

    fn epoch(&self) -> Option<MeshEpoch> {
        self.member().map(|member| member.assignment.mesh_epoch)
    }
}
