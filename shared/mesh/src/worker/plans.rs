//! Plan, go and cancel at a worker: each idempotent by (epoch, plan id, digest).

use std::time::{Duration, Instant};

use contract::model::check_steps;
use contract::tp::{Ack, Plan, PlanId, PlanRef, PlanRequest};
use contract::{CONTRACT_VERSION, Digest, Error, MeshEpoch, Reason};

use super::{Action, Actions, Job, Member, State, Worker};
use crate::invariants;

/// Where this rank stands in the one sequence of plans.
#[derive(Clone, Debug, Default)]
pub(super) struct Lockstep {
    /// The highest plan id heard of, in whatever message.
    seen: Option<PlanId>,
    step: Step,
}

#[derive(Clone, Debug, Default)]
enum Step {
    #[default]
    Idle,
    /// Acknowledged; nothing runs without `go`.
    Armed(Box<Plan>, Digest),
    Running(PlanId, Digest),
    Done(PlanId, Digest),
}

impl Lockstep {
    pub(super) fn ran(&mut self, plan_id: PlanId) {
        if let Step::Running(id, digest) = &self.step
            && *id == plan_id
        {
            self.step = Step::Done(plan_id, digest.clone());
        }
    }

    fn names(&self) -> Option<(PlanId, &Digest)> {
        match &self.step {
            Step::Idle => None,
            Step::Armed(plan, digest) => Some((plan.plan_id, digest)),
            Step::Running(id, digest) | Step::Done(id, digest) => Some((*id, digest)),
        }
    }
}

impl Worker {
    /// # Errors
    /// A nack: what is wrong with the plan, or why this rank cannot run it.
    pub(super) fn plan(&mut self, request: &PlanRequest) -> Result<Ack, Error> {
        if request.version != CONTRACT_VERSION {
            let text = format!("plan version {}: {CONTRACT_VERSION} is spoken here", request.version);
            return Err(Error::new(Reason::UnsupportedVersion, text));
        }
        let plan = &request.plan;
        let reserved = self.config.session_slots;
        let member = self.current(plan.mesh_epoch)?;
        let ack = Ack { rank: member.assignment.rank, plan_id: plan.plan_id };
        if !member.loaded {
            return Err(Error::new(Reason::NotReady, "the shard is being loaded"));
        }
        if let Some((id, digest)) = member.lockstep.names()
            && id == plan.plan_id
        {
            return if *digest == request.digest { Ok(ack) } else { Err(other_content(id)) };
        }
        if let Some(seen) = member.lockstep.seen.filter(|seen| plan.plan_id <= *seen) {
            return Err(stale(plan.plan_id, seen));
        }
        if let Step::Running(id, _) = member.lockstep.step {
            return Err(Error::new(Reason::Busy, format!("plan {} is running", id.0)));
        }
        if plan.digest()? != request.digest {
            return Err(Error::new(
                Reason::BadField,
                format!("plan {}: its digest is not its content's", plan.plan_id.0),
            ));
        }
        if plan.slot.0 > reserved {
            let text = format!("slot {}: this rank has slots 0 to {reserved}", plan.slot);
            return Err(Error::new(Reason::BadField, text));
        }
        if !plan.conditioning_follows && !member.conditionings.holds(&plan.conditioning) {
            let text = format!("conditioning {} is not held here", plan.conditioning);
            return Err(Error::new(Reason::UnknownConditioning, text));
        }
        self.check_against_model(plan)?;
        let State::In(member) = &mut self.state else { return Err(no_epoch(plan.mesh_epoch)) };
        member.lockstep.seen = Some(plan.plan_id);
        member.lockstep.step = Step::Armed(Box::new(plan.clone()), request.digest.clone());
        Ok(ack)
    }

    fn check_against_model(&self, plan: &Plan) -> Result<(), Error> {
        let model = &self.config.model;
        model.check_size(plan.size)?;
        check_steps(&plan.denoising_steps)?;
        if plan.num_latent_frames != model.frames_per_chunk {
            let (got, want) = (plan.num_latent_frames, model.frames_per_chunk);
            return Err(Error::new(
                Reason::BadField,
                format!("num_latent_frames is {got}: {want} is expected"),
            ));
        }
        let calls = model.expected_calls(plan.denoising_steps.len(), plan.do_kv_recompute);
        if plan.expected_generator_calls != calls {
            let got = plan.expected_generator_calls;
            return Err(Error::new(
                Reason::CallCount,
                format!("expected_generator_calls is {got}: the plan implies {calls}"),
            ));
        }
        Ok(())
    }

    /// # Errors
    /// A nack; nothing runs then.
    pub(super) fn go(&mut self, now: Instant, reference: &PlanRef, out: &mut Actions) -> Result<Ack, Error> {
        let member = self.current_mut(reference.mesh_epoch)?;
        let ack = Ack { rank: member.assignment.rank, plan_id: reference.plan_id };
        let go = (reference.plan_id, &reference.digest);
        match &member.lockstep.step {
            Step::Running(id, digest) | Step::Done(id, digest) if (*id, digest) == go => Ok(ack),
            Step::Armed(plan, digest) => {
                invariants::go_before_collective((plan.plan_id, digest), go)?;
                if reference.budget_ms == 0 {
                    let text = format!("go for plan {}: its budget ran out", reference.plan_id.0);
                    return Err(Error::new(Reason::CallAborted, text));
                }
                let plan = plan.clone();
                if plan.conditioning_follows {
                    member.conditionings.insert(plan.conditioning.clone(), ());
                } else {
                    member.conditionings.touch(&plan.conditioning);
                }
                member.lockstep.step = Step::Running(plan.plan_id, reference.digest.clone());
                member.busy_since = Some(now);
                let deadline = now + Duration::from_millis(reference.budget_ms);
                self.engine = Some((Job::Run(plan.mesh_epoch, plan.plan_id), deadline));
                out.push(Action::Run { plan, deadline });
                Ok(ack)
            }
            _ => Err(Error::new(
                Reason::StaleCall,
                format!("go for plan {}: it is not armed here", reference.plan_id.0),
            )),
        }
    }

    /// # Errors
    /// `stale_call` if the plan runs already: `go` and `cancel` exclude each other.
    pub(super) fn cancel(&mut self, reference: &PlanRef) -> Result<Ack, Error> {
        let member = self.current_mut(reference.mesh_epoch)?;
        let plan_id = reference.plan_id;
        let lockstep = &mut member.lockstep;
        match &lockstep.step {
            Step::Running(id, _) if *id == plan_id => {
                return Err(Error::new(Reason::StaleCall, format!("plan {} is running", plan_id.0)));
            }
            Step::Armed(plan, _) if plan.plan_id == plan_id => lockstep.step = Step::Idle,
            _ => {}
        }
        // A cancel that overtakes its plan: the plan is refused when it comes.
        lockstep.seen = lockstep.seen.max(Some(plan_id));
        Ok(Ack { rank: member.assignment.rank, plan_id })
    }

    fn current(&self, epoch: MeshEpoch) -> Result<&Member, Error> {
        self.member().filter(|m| m.assignment.mesh_epoch == epoch).ok_or_else(|| no_epoch(epoch))
    }

    fn current_mut(&mut self, epoch: MeshEpoch) -> Result<&mut Member, Error> {
        match &mut self.state {
            State::In(member) if member.assignment.mesh_epoch == epoch => Ok(member),
            _ => Err(no_epoch(epoch)),
        }
    }
}

fn no_epoch(epoch: MeshEpoch) -> Error {
    Error::new(Reason::StaleEpoch, format!("mesh epoch {epoch} is not this rank's"))
}

fn other_content(id: PlanId) -> Error {
    Error::new(Reason::StaleCall, format!("plan {} was already sent with other content", id.0))
}

fn stale(id: PlanId, seen: PlanId) -> Error {
    Error::new(Reason::StaleCall, format!("plan {}: plan {} was seen", id.0, seen.0))
}
