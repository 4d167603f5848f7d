//! stage0's side of the stage boundary: one sender, call ids that only grow, the lease, quarantine after a time-out, and
//! acceptance of results.
//!
//! The shell sends what [`Action::Send`] says and feeds every answer back; a request that ran out of time is answered with
//! `deadline_exceeded` by the shell, so that no call waits for ever.

mod io;

use std::time::Instant;

use contract::envelope::{Action as Ask, EnvelopeV1, HelloReply, Infer, MeshPhase, MeshState, Reply};
use contract::{
    CONTRACT_VERSION, CacheEpoch, CallId, Class, Error, InstanceId, LeaseEpoch, LinkSlot, MeshEpoch, Reason,
    SessionSlot,
};

pub use self::io::{Action, Input};
use crate::{ExitCode, Ticket, Timing, invariants};

/// The state machine of the controller.
#[derive(Clone, Debug)]
pub struct Controller {
    instance: InstanceId,
    timing: Timing,
    /// The epoch that status messages name.
    mesh_epoch: Option<MeshEpoch>,
    lease: Lease,
    next_call: CallId,
    running: Option<Running>,
    quarantined: Option<Quarantined>,
    /// The newest HELLO. Answers to what was asked before it say nothing about its lease.
    hello: CallId,
    noop: Option<CallId>,
    last_sent: Option<Instant>,
    stopped: bool,
}

#[derive(Clone, Debug)]
enum Lease {
    None,
    Asking,
    /// HELLO was answered; the shell attaches the link.
    Attaching(Box<HelloReply>),
    Held(Box<HelloReply>),
}

#[derive(Clone, Debug)]
struct Running {
    ticket: Ticket,
    call: CallId,
    cache_epoch: CacheEpoch,
    expected_calls: u32,
    deadline: Instant,
    slots: Vec<LinkSlot>,
    /// What was sent, to ask for the result again.
    envelope: Box<EnvelopeV1>,
    /// When the leader said first that it is done with the call.
    over: Option<Instant>,
    asked_again: bool,
}

/// A call that timed out, whose link slots nobody may reuse yet.
#[derive(Clone, Debug)]
struct Quarantined {
    call: CallId,
    slots: Vec<LinkSlot>,
}

type Actions = Vec<Action>;

impl Controller {
    #[must_use]
    pub fn new(instance: InstanceId, timing: Timing) -> Self {
        Self {
            instance,
            timing,
            mesh_epoch: None,
            lease: Lease::None,
            next_call: CallId(1),
            running: None,
            quarantined: None,
            hello: CallId(0),
            noop: None,
            last_sent: None,
            stopped: false,
        }
    }

    /// What HELLO told, while the lease and its link can be used.
    #[must_use]
    pub fn attached(&self) -> Option<&HelloReply> {
        match &self.lease {
            Lease::Held(hello) => Some(hello),
            _ => None,
        }
    }

    #[must_use]
    pub fn mesh_epoch(&self) -> Option<MeshEpoch> {
        self.mesh_epoch
    }

    #[must_use]
    pub fn running(&self) -> Option<CallId> {
        self.running.as_ref().map(|running| running.call)
    }

    #[must_use]
    pub fn quarantined(&self) -> Option<CallId> {
        self.quarantined.as_ref().map(|quarantined| quarantined.call)
    }

    /// One step. Every input is accepted in every state.
    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Action> {
        let mut out = Vec::new();
        if self.stopped {
            if let Input::Infer { ticket, .. } = input {
                out.push(Action::Deliver { ticket, result: Err(ended()) });
            }
            return out;
        }
        match input {
            Input::Tick => self.tick(now, &mut out),
            Input::Mesh { epoch } => self.mesh_seen(now, epoch, &mut out),
            Input::Infer { ticket, infer, deadline } => self.infer(now, ticket, *infer, deadline, &mut out),
            Input::Reset { slot } => self.reset(now, slot, &mut out),
            Input::Shutdown { reason } => self.shutdown(now, reason, &mut out),
            Input::Answered { call, result } => self.answered(now, call, *result, &mut out),
            Input::Attached { lease, result } => self.link_attached(lease, result, &mut out),
            Input::LinkFailed { error } => self.link_failed(error, &mut out),
            Input::Bye => self.bye(now, &mut out),
        }
        out
    }

    fn tick(&mut self, now: Instant, out: &mut Actions) {
        // The shell answers every request in its time; this only bounds a shell that was stalled.
        if let Some(running) = &self.running
            && let call = running.call
            && let Err(violation) = invariants::call_ends(now, call, running.deadline, self.timing.control)
        {
            self.answered(now, call, Err(violation.into()), out);
        }
        self.ask_again(now, out);
        let since = self.last_sent.map(|sent| now.saturating_duration_since(sent));
        match &self.lease {
            Lease::None if since.is_none_or(|since| since >= self.timing.join_retry) => self.hello(now, out),
            Lease::Held(_) if self.noop.is_none() => {
                let pause = match (&self.running, &self.quarantined) {
                    (Some(_), _) => self.timing.noop / 2,
                    (None, Some(_)) => self.timing.resend,
                    (None, None) => self.timing.noop,
                };
                if since.is_none_or(|since| since >= pause) {
                    self.noop = Some(self.next_call);
                    self.send(now, Ask::Noop, now + self.timing.control, out);
                }
            }
            _ => {}
        }
    }

    /// The leader is done with the call, and its answer has not come: it is lost. The leader keeps it, for whoever asks the
    /// same again.
    fn ask_again(&mut self, now: Instant, out: &mut Actions) {
        let Some(running) = &mut self.running else { return };
        let lost = running.over.is_some_and(|over| now.saturating_duration_since(over) >= self.timing.resend);
        let deadline = running.deadline.min(now + self.timing.control);
        if lost && !running.asked_again && now < deadline {
            running.asked_again = true;
            out.push(Action::Send { envelope: running.envelope.clone(), deadline });
        }
    }

    /// A status message of the leader names its epoch. A newer one ends everything of the older.
    fn mesh_seen(&mut self, now: Instant, epoch: MeshEpoch, out: &mut Actions) {
        if self.mesh_epoch.is_some_and(|known| epoch <= known) {
            return;
        }
        if self.mesh_epoch.is_some() {
            let error = Error::new(Reason::Recovering, format!("the mesh forms again as epoch {epoch}"));
            self.lose(error, out);
        }
        self.mesh_epoch = Some(epoch);
        self.hello(now, out);
    }

    fn hello(&mut self, now: Instant, out: &mut Actions) {
        if self.mesh_epoch.is_none() {
            return;
        }
        self.hello = self.next_call;
        self.lease = Lease::Asking;
        self.send(now, Ask::Hello, now + self.timing.control, out);
    }

    fn infer(&mut self, now: Instant, ticket: Ticket, infer: Infer, deadline: Instant, out: &mut Actions) {
        let (cache_epoch, expected_calls, slots) =
            (infer.cache_epoch, infer.expected_generator_calls, slots(&infer));
        let sound = self.preflight(&infer);
        match sound.and_then(|()| self.envelope(now, Ask::Infer(Box::new(infer)))) {
            Ok(envelope) => {
                out.push(Action::Send { envelope: envelope.clone(), deadline });
                self.running = Some(Running {
                    ticket,
                    call: envelope.call_id,
                    cache_epoch,
                    expected_calls,
                    deadline,
                    slots,
                    envelope,
                    over: None,
                    asked_again: false,
                });
            }
            Err(error) => out.push(Action::Deliver { ticket, result: Err(error) }),
        }
    }

    /// If this fails, nothing was sent and nobody waits.
    fn preflight(&self, infer: &Infer) -> Result<(), Error> {
        let Lease::Held(hello) = &self.lease else {
            return Err(Error::new(Reason::Recovering, "no lease on the mesh is held"));
        };
        if let Some(running) = &self.running {
            return Err(Error::new(Reason::Busy, format!("call {} is running", running.call)));
        }
        if let Some(Quarantined { call, slots: held }) = &self.quarantined {
            invariants::no_slot_is_read_and_written(held, &slots(infer))?;
            let text = format!("call {call} timed out and the mesh has not reported it over");
            return Err(Error::new(Reason::Busy, text));
        }
        if infer.session_slot.0 >= hello.session_slots {
            let (slot, slots) = (infer.session_slot, hello.session_slots);
            return Err(Error::new(Reason::BadField, format!("session_slot {slot}: {slots} are served")));
        }
        infer.validate(&hello.model)
    }

    fn reset(&mut self, now: Instant, slot: SessionSlot, out: &mut Actions) {
        if matches!(self.lease, Lease::Held(_)) {
            self.send(now, Ask::Reset { slot }, now + self.timing.control, out);
        }
    }

    fn shutdown(&mut self, now: Instant, reason: String, out: &mut Actions) {
        if matches!(self.lease, Lease::Held(_)) {
            self.send(now, Ask::Shutdown { reason }, now + self.timing.control, out);
        }
    }

    fn bye(&mut self, now: Instant, out: &mut Actions) {
        if matches!(self.lease, Lease::Held(_) | Lease::Attaching(_)) {
            self.send(now, Ask::Bye, now + self.timing.control, out);
        }
        self.lose(ended(), out);
        self.stopped = true;
    }

    fn send(&mut self, now: Instant, action: Ask, deadline: Instant, out: &mut Actions) {
        if let Ok(envelope) = self.envelope(now, action) {
            out.push(Action::Send { envelope, deadline });
        }
    }

    /// The next call.
    fn envelope(&mut self, now: Instant, action: Ask) -> Result<Box<EnvelopeV1>, Error> {
        let Some(mesh_epoch) = self.mesh_epoch else {
            return Err(Error::new(Reason::Recovering, "no leader has been heard yet"));
        };
        let lease = if matches!(action, Ask::Hello) { None } else { self.lease_epoch() };
        let envelope = EnvelopeV1 {
            version: CONTRACT_VERSION,
            call_id: self.next_call,
            mesh_epoch,
            controller: self.instance,
            lease,
            action,
        };
        self.next_call = self.next_call.next();
        self.last_sent = Some(now);
        Ok(Box::new(envelope))
    }

    fn lease_epoch(&self) -> Option<LeaseEpoch> {
        match &self.lease {
            Lease::Attaching(hello) | Lease::Held(hello) => Some(hello.lease),
            Lease::None | Lease::Asking => None,
        }
    }

    fn answered(&mut self, now: Instant, call: CallId, result: Result<Reply, Error>, out: &mut Actions) {
        let keepalive = self.noop.take_if(|noop| *noop == call).is_some();
        if call < self.hello {
            return;
        }
        if let Err(error) = &result
            && error.reason == Reason::Fenced
        {
            return self.fenced(error.clone(), out);
        }
        if matches!(self.lease, Lease::Asking) && call == self.hello {
            return self.hello_answered(result, out);
        }
        if self.running.as_ref().is_some_and(|running| running.call == call) {
            return self.call_answered(result, out);
        }
        match result {
            Ok(Reply::Noop(state)) => self.noop_answered(now, &state, out),
            // The lease ran out or was released: take it again. Its histories are gone with it.
            Err(error) if error.reason == Reason::NoLease => {
                self.lose(error, out);
                self.hello(now, out);
            }
            Err(error) if keepalive => self.keepalive_failed(call, error, out),
            _ => {}
        }
    }

    /// A leader that lives answers in every state, so that this tells its end sooner than a call's own budget does.
    fn keepalive_failed(&mut self, keepalive: CallId, error: Error, out: &mut Actions) {
        match error.reason {
            // Nobody serves this epoch any more.
            Reason::NoResponders => self.lose(error, out),
            // It has stopped, for now or for good: the call is given up as if its own time were over.
            Reason::BudgetSpent if self.running().is_some_and(|call| call < keepalive) => {
                let ms = self.timing.control.as_millis();
                let error = Error::new(Reason::RankLost, format!("rank 0: no answer for {ms} ms"));
                self.call_answered(Err(error), out);
            }
            _ => {}
        }
    }

    fn hello_answered(&mut self, result: Result<Reply, Error>, out: &mut Actions) {
        match result {
            Ok(Reply::Hello(hello)) if hello.version == CONTRACT_VERSION => {
                out.push(Action::Attach(hello.clone()));
                self.lease = Lease::Attaching(hello);
            }
            Ok(Reply::Hello(hello)) => {
                let text =
                    format!("hello reply version {}: {CONTRACT_VERSION} is spoken here", hello.version);
                self.refused(Error::new(Reason::UnsupportedVersion, text), out);
            }
            Ok(_) => {
                self.refused(Error::new(Reason::Malformed, "HELLO was answered with something else"), out)
            }
            Err(error) => self.refused(error, out),
        }
    }

    fn refused(&mut self, error: Error, out: &mut Actions) {
        self.lease = Lease::None;
        out.push(Action::Refused(error));
    }

    fn link_attached(&mut self, lease: LeaseEpoch, result: Result<(), Error>, out: &mut Actions) {
        match std::mem::replace(&mut self.lease, Lease::None) {
            Lease::Attaching(hello) if hello.lease == lease => match result {
                Ok(()) => {
                    out.push(Action::Ready(hello.clone()));
                    self.lease = Lease::Held(hello);
                }
                Err(error) => out.push(Action::Refused(error)),
            },
            other => self.lease = other,
        }
    }

    /// A link lives as long as its lease, so that a new one takes a new lease.
    fn link_failed(&mut self, error: Error, out: &mut Actions) {
        if matches!(self.lease, Lease::Attaching(_) | Lease::Held(_)) {
            self.lose(error, out);
        }
    }

    fn call_answered(&mut self, result: Result<Reply, Error>, out: &mut Actions) {
        let Some(running) = self.running.take() else { return };
        let result = match result {
            Err(error) if running.asked_again && error.reason == Reason::StaleCall => {
                let text = format!("call {} never reached the mesh", running.call);
                Err(Error::new(Reason::NotReady, text).detail(error.to_string()))
            }
            Ok(Reply::Infer(result)) => match self.accept(&running, &result) {
                Ok(()) => Ok(result),
                Err(error) => Err(error),
            },
            Ok(_) => Err(Error::new(Reason::Malformed, "the leader answered a call with something else")),
            Err(error) => Err(error),
        };
        let over = match &result {
            Ok(_) => true,
            // Whatever the leader itself said ends the call; silence does not, nor does the end of its epoch: the link
            // may still be read.
            Err(error) => {
                !matches!(error.class(), Class::DeadlineExceeded | Class::Unavailable)
                    && error.reason != Reason::RankLost
                    || matches!(error.reason, Reason::Busy | Reason::NotReady | Reason::Draining)
            }
        };
        if !over {
            self.quarantined = Some(Quarantined { call: running.call, slots: running.slots });
            out.push(Action::Quarantine { call: running.call });
        }
        let lost = result.as_ref().err().filter(|error| error.reason == Reason::NoLease).cloned();
        out.push(Action::Deliver { ticket: running.ticket, result });
        if let Some(error) = lost {
            self.lose(error, out);
        }
    }

    fn accept(&self, running: &Running, result: &contract::envelope::ResultV1) -> Result<(), Error> {
        if result.version != CONTRACT_VERSION {
            let text = format!("result version {}: {CONTRACT_VERSION} is spoken here", result.version);
            return Err(Error::new(Reason::UnsupportedVersion, text));
        }
        if result.call_id != running.call {
            let (got, want) = (result.call_id, running.call);
            return Err(Error::new(Reason::StaleCall, format!("result of call {got}: {want} is running")));
        }
        let epoch = self.mesh_epoch.unwrap_or_default();
        invariants::result_is_current(result, epoch, running.cache_epoch, running.expected_calls)?;
        Ok(())
    }

    fn noop_answered(&mut self, now: Instant, state: &MeshState, out: &mut Actions) {
        let idle = state.running.is_none() && state.phase != MeshPhase::Busy;
        let over = |call: CallId| idle && state.last_call.is_some_and(|last| last >= call);
        if let Some(running) = self.running.as_mut().filter(|running| over(running.call)) {
            running.over.get_or_insert(now);
        }
        if let Some(Quarantined { call, .. }) = self.quarantined.take_if(|held| over(held.call)) {
            out.push(Action::Release { call });
        }
    }

    fn fenced(&mut self, error: Error, out: &mut Actions) {
        let reason = error.to_string();
        self.lose(error, out);
        self.stopped = true;
        out.push(Action::Exit { code: ExitCode::NeedsRestart, reason });
    }

    /// The lease, its link and the running call are gone.
    fn lose(&mut self, error: Error, out: &mut Actions) {
        if let Some(running) = self.running.take() {
            // It may have begun, of which an error that refuses the next one says nothing.
            let cause = error.clone();
            let cause = if never_began(cause.reason) {
                Error { reason: Reason::CallAborted, ..cause }
            } else {
                cause
            };
            out.push(Action::Deliver { ticket: running.ticket, result: Err(cause) });
        }
        self.quarantined = None;
        self.noop = None;
        if !matches!(std::mem::replace(&mut self.lease, Lease::None), Lease::None) {
            out.push(Action::Lost(error));
        }
    }
}

/// Whether a call that failed for this was refused before any rank heard of it: nothing of it is lost, and the same may be
/// asked of the mesh once it is ready.
#[must_use]
pub fn never_began(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NotReady
            | Reason::Recovering
            | Reason::Draining
            | Reason::Busy
            | Reason::NoResponders
            | Reason::NoLease
    )
}

fn slots(infer: &Infer) -> Vec<LinkSlot> {
    infer.tensors.iter().map(|spec| spec.slot).collect()
}

fn ended() -> Error {
    Error::new(Reason::SessionEnded, "this controller has stopped")
}
