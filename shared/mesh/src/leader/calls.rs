//! What a controller asks, and admission: whatever is wrong with a call is found before any worker hears of it.

use std::time::Instant;

use contract::envelope::{Action as Ask, EnvelopeV1, HelloReply, Infer, Lease, MeshPhase, MeshState, Reply};
use contract::link::LinkDescriptor;
use contract::tensor::TensorKey;
use contract::tp::{TpNoop, TpShutdown};
use contract::{CONTRACT_VERSION, CallId, Digest, Error, Reason, SessionSlot};

use super::{Action, Actions, Hello, Kept, Leader, MAX_WAITERS, draining_error};
use crate::{ExitCode, Ticket};

impl Leader {
    pub(super) fn call(
        &mut self,
        now: Instant,
        ticket: Ticket,
        envelope: EnvelopeV1,
        digest: Digest,
        deadline: Instant,
        out: &mut Actions,
    ) {
        let answer = match self.admit_sender(now, &envelope, deadline) {
            Err(error) => Some(Err(error)),
            Ok(()) if matches!(envelope.action, Ask::Hello) => {
                self.ask_hello(now, ticket, &envelope, digest, out)
            }
            Ok(()) => self.ask(now, ticket, envelope, digest, deadline, out),
        };
        if let Some(result) = answer {
            out.push(Action::Answer { ticket, result });
        }
    }

    fn admit_sender(&self, now: Instant, envelope: &EnvelopeV1, deadline: Instant) -> Result<(), Error> {
        envelope.check_version()?;
        if now >= deadline {
            return Err(spent(envelope.call_id));
        }
        let Some(formation) = &self.epoch else {
            return Err(Error::new(Reason::Recovering, "the mesh is between two epochs"));
        };
        if formation.epoch != envelope.mesh_epoch {
            let (got, current) = (envelope.mesh_epoch, formation.epoch);
            return Err(Error::new(Reason::StaleEpoch, format!("mesh epoch {got}: {current} is current")));
        }
        Ok(())
    }

    fn ask_hello(
        &mut self,
        now: Instant,
        ticket: Ticket,
        envelope: &EnvelopeV1,
        digest: Digest,
        out: &mut Actions,
    ) -> Option<Result<Reply, Error>> {
        if self.draining.is_some() {
            return Some(Err(draining_error()));
        }
        let in_force = self.lease.current();
        if let Some(hello) = &mut self.hello
            && Some(hello.lease) == in_force
            && hello.lease.controller == envelope.controller
            && (hello.call, &hello.digest) == (envelope.call_id, &digest)
        {
            return match &hello.reply {
                Some(reply) => Some(Ok(reply.clone())),
                None if hello.waiters.len() < MAX_WAITERS => {
                    hello.waiters.push(ticket);
                    None
                }
                None => Some(Err(busy("the link is being opened"))),
            };
        }
        let lease = match self.lease.grant(now, envelope.controller, envelope.call_id) {
            Ok(lease) => lease,
            Err(error) => {
                if error.reason == Reason::LeaseHeld {
                    out.extend(self.lease.seek(now).map(|lease| Action::Seek { lease }));
                }
                return Some(Err(error));
            }
        };
        let fenced = Error::new(Reason::Fenced, format!("lease {} is in force now", lease.epoch));
        self.end_hello(&fenced, out);
        self.drop_waiters(&fenced, out);
        self.slots.clear();
        self.kept = None;
        self.hello =
            Some(Hello { lease, call: envelope.call_id, digest, waiters: vec![ticket], reply: None });
        out.push(Action::OpenLink { lease });
        None
    }

    pub(super) fn link_opened(
        &mut self,
        lease: Lease,
        result: Result<LinkDescriptor, Error>,
        out: &mut Actions,
    ) {
        let Some(hello) = self.hello.as_mut().filter(|hello| hello.lease == lease) else { return };
        let waiters = std::mem::take(&mut hello.waiters);
        let reply = result.map(|link| {
            Reply::Hello(Box::new(HelloReply {
                version: CONTRACT_VERSION,
                lease: lease.epoch,
                lease_ttl_ms: u64::try_from(self.config.timing.lease_ttl.as_millis()).unwrap_or(u64::MAX),
                link,
                model: self.config.model.clone(),
                world_size: self.config.world_size,
                session_slots: self.config.session_slots,
            }))
        });
        match &reply {
            Ok(reply) => hello.reply = Some(reply.clone()),
            Err(_) => {
                self.hello = None;
                self.lease.release();
            }
        }
        out.extend(waiters.into_iter().map(|ticket| Action::Answer { ticket, result: reply.clone() }));
    }

    pub(super) fn end_hello(&mut self, error: &Error, out: &mut Actions) {
        if let Some(hello) = self.hello.take() {
            let answer = |ticket| Action::Answer { ticket, result: Err(error.clone()) };
            out.extend(hello.waiters.into_iter().map(answer));
        }
    }

    fn ask(
        &mut self,
        now: Instant,
        ticket: Ticket,
        envelope: EnvelopeV1,
        digest: Digest,
        deadline: Instant,
        out: &mut Actions,
    ) -> Option<Result<Reply, Error>> {
        let lease = match self.lease.authorise(now, &envelope) {
            Ok(lease) => lease,
            Err(error) => return Some(Err(error)),
        };
        let call = envelope.call_id;
        if matches!(envelope.action, Ask::Infer(_))
            && let Some(answer) = self.asked_before(ticket, lease, call, &digest)
        {
            return answer;
        }
        match self.lease.advance(call) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Some(Err(error)),
            Err(violation) => {
                let error = Error::from(violation.clone());
                self.violated(now, violation, out);
                return Some(Err(error));
            }
        }
        match envelope.action {
            Ask::Hello => Some(Err(Error::new(Reason::Internal, "hello is not asked under a lease"))),
            Ask::Infer(infer) => {
                match self.admit(&infer) {
                    Ok(()) => self.start_call(now, ticket, lease, call, digest, *infer, deadline, out),
                    Err(error) => {
                        // A busy refusal must not replace the result that a re-ask may still want.
                        if error.reason != Reason::Busy {
                            let outcome = Err(error.clone());
                            self.kept = Some(Kept { lease, call, digest, outcome });
                        }
                        return Some(Err(error));
                    }
                }
                None
            }
            Ask::Noop => {
                if let Some(formation) = &self.epoch {
                    let mesh_epoch = formation.epoch;
                    out.push(Action::RelayNoop(TpNoop { mesh_epoch, controller_call: Some(call) }));
                }
                self.state().map(|state| Ok(Reply::Noop(state)))
            }
            Ask::Reset { slot } => Some(self.reset(slot)),
            Ask::Shutdown { reason } => {
                self.shut_down(now, &reason, out);
                Some(Ok(Reply::Shutdown))
            }
            Ask::Bye => {
                let error = Error::new(Reason::CallAborted, "the controller said BYE");
                self.drop_waiters(&error, out);
                self.end_hello(&error, out);
                self.lease.release();
                self.slots.clear();
                self.kept = None;
                out.push(Action::CloseLink);
                Some(Ok(Reply::Bye))
            }
        }
    }

    /// The same id with the same digest attaches to the running call or gets its result again.
    fn asked_before(
        &mut self,
        ticket: Ticket,
        lease: Lease,
        call: CallId,
        digest: &Digest,
    ) -> Option<Option<Result<Reply, Error>>> {
        let other = || {
            Err(Error::new(Reason::StaleCall, format!("call {call} was already asked with other content")))
        };
        if let Some(asked) = self.run.as_mut().and_then(|run| run.asked_by(lease, call)) {
            if asked.digest != *digest {
                return Some(Some(other()));
            }
            if asked.waiters.len() >= MAX_WAITERS {
                return Some(Some(Err(busy("too many requests wait for this call"))));
            }
            asked.waiters.push(ticket);
            return Some(None);
        }
        let kept = self.kept.as_ref().filter(|kept| (kept.lease, kept.call) == (lease, call))?;
        Some(Some(if kept.digest == *digest { kept.outcome.clone() } else { other() }))
    }

    fn admit(&self, infer: &Infer) -> Result<(), Error> {
        if self.draining.is_some() {
            return Err(draining_error());
        }
        match self.phase {
            MeshPhase::Ready => {}
            MeshPhase::Busy => return Err(busy("another call is running")),
            MeshPhase::Faulted => return Err(Error::new(Reason::Recovering, "the mesh forms again")),
            phase => {
                let waits = self.waiting_for().unwrap_or_default();
                return Err(Error::new(Reason::NotReady, format!("the mesh is {}: {waits}", phase.as_str())));
            }
        }
        infer.validate(&self.config.model)?;
        if let Some(plan) = infer.tp_plan
            && plan != self.config.tp_plan
        {
            let (here, asked) = (self.config.tp_plan.as_str(), plan.as_str());
            return Err(Error::new(
                Reason::TpPlanMismatch,
                format!("tp_plan: leader {here}, envelope {asked}"),
            ));
        }
        self.check_history(infer)?;
        self.slots.check(infer)?;
        let follows = infer.tensor(TensorKey::ConditioningEmbeds).is_some();
        if !follows && !self.conditionings.holds(&infer.conditioning) {
            return Err(Error::new(
                Reason::UnknownConditioning,
                format!("conditioning {} is not held here: send its tensor", infer.conditioning),
            ));
        }
        Ok(())
    }

    /// What this model's history allows, so that no rank refuses a call that runs.
    fn check_history(&self, infer: &Infer) -> Result<(), Error> {
        let model = &self.config.model;
        let bad = |text: String| Err(Error::new(Reason::BadField, text));
        let (start, block) = (infer.current_start_frame, u64::from(model.frames_per_chunk.max(1)));
        if start % block != 0 {
            return bad(format!("current_start_frame is {start}: a multiple of {block} is expected"));
        }
        if model.recompute {
            return Ok(());
        }
        if start > 0 && infer.init_cache {
            return bad(format!(
                "init_cache at start frame {start}: {} cannot rebuild its cache",
                model.name
            ));
        }
        model.check_attention_bias(infer.kv_cache_attention_bias)
    }

    fn reset(&mut self, slot: SessionSlot) -> Result<Reply, Error> {
        self.slots.reset(slot).map(|()| Reply::Reset)
    }

    fn shut_down(&mut self, now: Instant, reason: &str, out: &mut Actions) {
        if let Some(formation) = &self.epoch {
            let shutdown = TpShutdown { mesh_epoch: formation.epoch, reason: reason.to_owned() };
            out.push(Action::PublishShutdown(shutdown));
        }
        if self.engine.is_some() {
            out.push(Action::Abort { reason: format!("shutdown: {reason}") });
        }
        self.exit(now, ExitCode::Asked, format!("shutdown: {reason}"), out);
    }

    fn state(&self) -> Option<MeshState> {
        let formation = self.epoch.as_ref()?;
        Some(MeshState {
            mesh_epoch: formation.epoch,
            phase: self.phase,
            running: self.running_call(),
            last_call: self.lease.last_call(),
        })
    }
}

pub(super) fn busy(text: &str) -> Error {
    Error::new(Reason::Busy, text)
}

pub(super) fn spent(call: CallId) -> Error {
    Error::new(Reason::BudgetSpent, format!("call {call}: its budget ran out"))
}
