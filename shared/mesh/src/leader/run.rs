//! One lockstep run: tensors, plan, acknowledgements, go or cancel, result. Warm-up, canary and calls take this one path.

use std::collections::BTreeMap;
use std::time::Instant;

use contract::envelope::{Infer, Lease, MeshPhase, MeshTimings};
use contract::tensor::TensorKey;
use contract::tp::{Plan, PlanId, PlanRef, PlanRequest};
use contract::{CONTRACT_VERSION, CacheEpoch, CallId, Class, Digest, Error, Rank, Reason, SessionSlot};

use super::calls::spent;
use super::{Action, Actions, Job, Leader, Message, Source, Verb};
use crate::{ExitCode, Ticket, invariants};

/// Seed of warm-up and canary noise; any fixed number will do.
const FIXED_SEED: u64 = 7;

#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) plan: Plan,
    digest: Digest,
    pub(super) purpose: Purpose,
    stage: Stage,
    deadline: Instant,
    pub(super) started: Instant,
    stage_since: Instant,
    /// Workers that have not answered what was sent last, and when it was sent.
    pending: BTreeMap<Rank, Instant>,
    pub(super) plan_us: u64,
    pub(super) go_us: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Purpose {
    WarmUp,
    Canary,
    Call(Asked),
}

/// The controller's call behind a run.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) lease: Lease,
    pub(super) call: CallId,
    pub(super) digest: Digest,
    pub(super) waiters: Vec<Ticket>,
    pub(super) infer: Box<Infer>,
}

#[derive(Clone, Debug)]
enum Stage {
    Fetching,
    /// Its time ran out while the link was being read. Whoever asked knows; the call is over when the reading is, since
    /// its slots are written again then.
    Abandoned(Error),
    Planning,
    Cancelling(Error),
    /// `go` is out; from here on only the engine or a fault ends the run.
    Running,
}

impl Run {
    pub(super) fn is_call(&self) -> bool {
        matches!(self.purpose, Purpose::Call(_))
    }

    pub(super) fn call_id(&self) -> Option<CallId> {
        match &self.purpose {
            Purpose::Call(asked) => Some(asked.call),
            Purpose::WarmUp | Purpose::Canary => None,
        }
    }

    pub(super) fn asked_by(&mut self, lease: Lease, call: CallId) -> Option<&mut Asked> {
        match &mut self.purpose {
            Purpose::Call(asked) if (asked.lease, asked.call) == (lease, call) => Some(asked),
            _ => None,
        }
    }

    fn verb(&self) -> Option<Verb> {
        match self.stage {
            Stage::Fetching | Stage::Abandoned(_) => None,
            Stage::Planning => Some(Verb::Plan),
            Stage::Cancelling(_) => Some(Verb::Cancel),
            Stage::Running => Some(Verb::Go),
        }
    }

    fn message(&self, now: Instant, verb: Verb) -> Message {
        if verb == Verb::Plan {
            return Message::Plan(Box::new(PlanRequest {
                version: CONTRACT_VERSION,
                plan: self.plan.clone(),
                digest: self.digest.clone(),
            }));
        }
        let left = self.deadline.saturating_duration_since(now);
        Message::Reference(PlanRef {
            mesh_epoch: self.plan.mesh_epoch,
            plan_id: self.plan.plan_id,
            digest: self.digest.clone(),
            budget_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

impl Leader {
    #[expect(clippy::too_many_arguments, reason = "a call is all of these")]
    pub(super) fn start_call(
        &mut self,
        now: Instant,
        ticket: Ticket,
        lease: Lease,
        call: CallId,
        digest: Digest,
        infer: Infer,
        deadline: Instant,
        out: &mut Actions,
    ) {
        let Some(mesh_epoch) = self.epoch.as_ref().map(|formation| formation.epoch) else { return };
        self.set_phase(now, MeshPhase::Busy);
        let plan = Plan {
            mesh_epoch,
            plan_id: self.take_plan_id(),
            slot: infer.session_slot,
            cache_epoch: infer.cache_epoch,
            size: infer.size,
            current_start_frame: infer.current_start_frame,
            num_latent_frames: infer.num_latent_frames,
            denoising_steps: infer.denoising_steps.clone(),
            do_kv_recompute: infer.do_kv_recompute,
            init_cache: infer.init_cache,
            reset_kv_cache: infer.reset_kv_cache,
            reset_crossattn_cache: infer.reset_crossattn_cache,
            base_seed: infer.base_seed,
            kv_cache_attention_bias: infer.kv_cache_attention_bias,
            expected_generator_calls: infer.expected_generator_calls,
            conditioning: infer.conditioning.clone(),
            conditioning_follows: infer.tensor(TensorKey::ConditioningEmbeds).is_some(),
        };
        let source = Source::Link { lease, infer: Box::new(infer.clone()) };
        let asked = Asked { lease, call, digest, waiters: vec![ticket], infer: Box::new(infer) };
        self.start_run(now, plan, Purpose::Call(asked), source, deadline, out);
    }

    /// The next warm-up chunk, or the canary after the last.
    pub(super) fn warm_up(&mut self, now: Instant, out: &mut Actions) {
        let Some(mesh_epoch) = self.epoch.as_ref().map(|formation| formation.epoch) else { return };
        let Some(size) = self.config.model.default_size() else {
            let reason = "the model serves no size".to_owned();
            return self.exit(now, ExitCode::Configuration, reason, out);
        };
        let canary = self.warmed >= self.config.warm_up_chunks;
        let chunk = if canary { 0 } else { self.warmed };
        let model = &self.config.model;
        let recompute = model.recompute && chunk > 0;
        let plan = Plan {
            mesh_epoch,
            plan_id: self.next_plan,
            slot: SessionSlot(self.config.session_slots),
            cache_epoch: CacheEpoch(u64::from(canary)),
            size,
            current_start_frame: u64::from(chunk * model.frames_per_chunk),
            num_latent_frames: model.frames_per_chunk,
            denoising_steps: model.default_steps.clone(),
            do_kv_recompute: recompute,
            init_cache: chunk == 0,
            reset_kv_cache: false,
            reset_crossattn_cache: false,
            base_seed: FIXED_SEED,
            kv_cache_attention_bias: model.default_attention_bias,
            expected_generator_calls: model.expected_calls(model.default_steps.len(), recompute),
            conditioning: Digest::of(&[b"warm-up"]),
            conditioning_follows: true,
        };
        self.take_plan_id();
        let purpose = if canary { Purpose::Canary } else { Purpose::WarmUp };
        let deadline = now + self.config.timing.warm_up;
        self.start_run(now, plan, purpose, Source::Fixed { seed: FIXED_SEED }, deadline, out);
    }

    fn take_plan_id(&mut self) -> PlanId {
        let id = self.next_plan;
        self.next_plan = PlanId(id.0 + 1);
        id
    }

    fn start_run(
        &mut self,
        now: Instant,
        plan: Plan,
        purpose: Purpose,
        source: Source,
        deadline: Instant,
        out: &mut Actions,
    ) {
        let digest = plan.digest();
        let fetch = Action::Fetch { plan: Box::new(plan.clone()), source };
        let run = Run {
            digest: digest.as_ref().map_or_else(|_| Digest::of(&[]), Clone::clone),
            plan,
            purpose,
            stage: Stage::Fetching,
            deadline,
            started: now,
            stage_since: now,
            pending: BTreeMap::new(),
            plan_us: 0,
            go_us: 0,
        };
        self.run = Some(run);
        match digest {
            Ok(_) => out.push(fetch),
            Err(error) => self.finish_refused(now, error, out),
        }
    }

    /// The tensors are here, or the call is refused before any worker heard of it.
    pub(super) fn fetched(
        &mut self,
        now: Instant,
        plan_id: PlanId,
        result: Result<(), Error>,
        out: &mut Actions,
    ) {
        let Some(run) = self.run.as_mut().filter(|run| run.plan.plan_id == plan_id) else { return };
        match (run.stage.clone(), result) {
            (Stage::Abandoned(error), _) | (Stage::Fetching, Err(error)) => {
                self.finish_refused(now, error, out);
            }
            (Stage::Fetching, Ok(())) => {
                run.stage = Stage::Planning;
                run.stage_since = now;
                self.send_to_all(now, out);
                self.go_if_all_acknowledged(now, out);
            }
            _ => {}
        }
    }

    fn send_to_all(&mut self, now: Instant, out: &mut Actions) {
        let ranks: Vec<Rank> = self.config.world_size.workers().collect();
        if let Some(run) = &mut self.run {
            run.pending = ranks.iter().map(|rank| (*rank, now)).collect();
        }
        for rank in ranks {
            self.send(now, rank, out);
        }
    }

    fn send(&mut self, now: Instant, rank: Rank, out: &mut Actions) {
        let resend = self.config.timing.resend;
        let Some(run) = &mut self.run else { return };
        let Some(verb) = run.verb() else { return };
        run.pending.insert(rank, now);
        out.push(Action::Send {
            epoch: run.plan.mesh_epoch,
            rank,
            verb,
            plan_id: run.plan.plan_id,
            message: run.message(now, verb),
            deadline: now + resend,
        });
    }

    pub(super) fn answered(
        &mut self,
        now: Instant,
        rank: Rank,
        verb: Verb,
        plan_id: PlanId,
        result: Result<(), Error>,
        out: &mut Actions,
    ) {
        let Some(run) = self.run.as_mut().filter(|run| run.plan.plan_id == plan_id) else { return };
        if run.verb() != Some(verb) {
            return;
        }
        match result {
            // It will be sent again: neither a lost message nor a rank that is not there yet is a nack.
            Err(error) if matches!(error.class(), Class::DeadlineExceeded | Class::Unavailable) => return,
            Err(error) if verb == Verb::Plan => {
                let text = format!("rank {rank} refuses the plan: {}", error.message);
                return self.cancel(now, Error { message: text, ..error }, out);
            }
            Err(error) if verb == Verb::Go => {
                let text = format!("rank {rank} refuses to go: {}", error.message);
                return self.fault(now, &Error { message: text, ..error }, out);
            }
            // A rank that cannot cancel holds no such plan.
            Ok(()) | Err(_) => {}
        }
        run.pending.remove(&rank);
        if !run.pending.is_empty() {
            return;
        }
        let took = MeshTimings::micros(now.saturating_duration_since(run.stage_since));
        match run.stage.clone() {
            Stage::Fetching | Stage::Abandoned(_) => {}
            Stage::Planning => self.go_if_all_acknowledged(now, out),
            Stage::Cancelling(error) => self.finish_refused(now, error, out),
            Stage::Running => run.go_us = took,
        }
    }

    fn go_if_all_acknowledged(&mut self, now: Instant, out: &mut Actions) {
        let Some(run) = self.run.as_mut().filter(|run| run.pending.is_empty()) else { return };
        // The lease may have changed hands since the call was admitted.
        if let Purpose::Call(asked) = &run.purpose
            && let Err(violation) = invariants::one_lease_is_obeyed(asked.lease, self.lease.current())
        {
            return self.cancel(now, violation.into(), out);
        }
        run.plan_us = MeshTimings::micros(now.saturating_duration_since(run.stage_since));
        run.stage = Stage::Running;
        run.stage_since = now;
        self.engine = Some(Job::Run(run.plan.mesh_epoch, run.plan.plan_id));
        let deliver = match &run.purpose {
            Purpose::Call(asked) => {
                self.slots.started(&asked.infer);
                Some(asked.lease)
            }
            Purpose::WarmUp | Purpose::Canary => None,
        };
        if run.plan.conditioning_follows {
            self.conditionings.insert(run.plan.conditioning.clone(), ());
        } else {
            self.conditionings.touch(&run.plan.conditioning);
        }
        let (plan, deadline) = (Box::new(run.plan.clone()), run.deadline);
        self.send_to_all(now, out);
        out.push(Action::Run { plan, deadline, deliver });
    }

    /// Every rank is made idle again; then the controller gets the reason.
    fn cancel(&mut self, now: Instant, error: Error, out: &mut Actions) {
        let Some(run) = &mut self.run else { return };
        run.stage = Stage::Cancelling(error.clone());
        run.stage_since = now;
        self.send_to_all(now, out);
        if self.config.world_size.get() == 1 {
            self.finish_refused(now, error, out);
        }
    }

    pub(super) fn tick_run(&mut self, now: Instant, out: &mut Actions) {
        let timing = self.config.timing;
        let Some(run) = &self.run else { return };
        let in_stage = now.saturating_duration_since(run.stage_since);
        let expired = now >= run.deadline;
        match run.stage.clone() {
            Stage::Fetching if expired => return self.abandon(now, self.spent(), out),
            Stage::Abandoned(error) if in_stage >= timing.abort => return self.fault(now, &error, out),
            Stage::Planning if expired || in_stage >= timing.plan => {
                let silent: Vec<String> = run.pending.keys().map(Rank::to_string).collect();
                let text = format!("no acknowledgement of the plan from ranks {}", silent.join(", "));
                let reason = if expired { Reason::BudgetSpent } else { Reason::CallAborted };
                return self.cancel(now, Error::new(reason, text), out);
            }
            // A rank that never hears the cancel holds a plan without go, which the next plan replaces.
            Stage::Cancelling(error) if in_stage >= timing.resend * 2 => {
                return self.finish_refused(now, error, out);
            }
            Stage::Running if expired => return self.fault(now, &self.spent(), out),
            _ => {}
        }
        let Some(run) = &self.run else { return };
        let due = |sent: &Instant| now.saturating_duration_since(*sent) >= timing.resend;
        let again: Vec<Rank> =
            run.pending.iter().filter(|(_, sent)| due(sent)).map(|(rank, _)| *rank).collect();
        for rank in again {
            self.send(now, rank, out);
        }
    }

    fn abandon(&mut self, now: Instant, error: Error, out: &mut Actions) {
        self.drop_waiters(&error, out);
        if let Some(run) = &mut self.run {
            run.stage = Stage::Abandoned(error);
            run.stage_since = now;
        }
    }

    fn spent(&self) -> Error {
        let text = || Error::new(Reason::BudgetSpent, "the warm-up run did not end in its time");
        self.running_call().map_or_else(text, spent)
    }
}
