//! Inputs and actions of the machines in one line each, for a flight recorder.
//!
//! *Routine* ones come again and again while nothing happens: ticks, beats, keepalives. A recorder that kept them would
//! hold nothing else.

mod controller;
mod leader;
mod worker;

use std::fmt::{self, Display, Formatter};

use contract::Error;
use contract::envelope::{Action as Ask, EnvelopeV1, Reply, ResultV1};
use contract::link::LinkDescriptor;
use contract::tp::{Ack, JoinReply, Plan};

/// What came of something: its good end as [`Shown`], or the error.
struct Outcome<'a, T>(&'a Result<T, Error>);

impl<'a, T> Display for Outcome<'a, T>
where
    Shown<'a, T>: Display,
{
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(good) => Shown(good).fmt(f),
            Err(error) => error.fmt(f),
        }
    }
}

struct Shown<'a, T>(&'a T);

impl Display for Shown<'_, EnvelopeV1> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let envelope = self.0;
        write!(f, "{} call {} epoch {}", envelope.action.as_str(), envelope.call_id, envelope.mesh_epoch)?;
        if let Some(lease) = envelope.lease {
            write!(f, " lease {lease}")?;
        }
        match &envelope.action {
            Ask::Infer(infer) => write!(
                f,
                " session {} slot {} chunk {} cache {} frame {}",
                infer.session,
                infer.session_slot,
                infer.chunk_index,
                infer.cache_epoch,
                infer.current_start_frame
            ),
            Ask::Reset { slot } => write!(f, " slot {slot}"),
            Ask::Shutdown { reason } => write!(f, " {reason}"),
            Ask::Hello => write!(f, " from {}", envelope.controller),
            Ask::Noop | Ask::Bye => Ok(()),
        }
    }
}

impl Display for Shown<'_, Plan> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let plan = self.0;
        write!(
            f,
            "plan {} epoch {} slot {} cache {} frame {}",
            plan.plan_id.0, plan.mesh_epoch, plan.slot, plan.cache_epoch, plan.current_start_frame
        )?;
        if plan.init_cache {
            f.write_str(" init")?;
        }
        Ok(())
    }
}

impl Display for Shown<'_, Reply> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Reply::Hello(hello) => write!(f, "hello: lease {} link {}", hello.lease, hello.link.link_epoch),
            Reply::Infer(result) => Shown(result).fmt(f),
            Reply::Noop(state) => write!(f, "noop: {}", state.phase.as_str()),
            Reply::Reset => f.write_str("reset"),
            Reply::Shutdown => f.write_str("shutdown"),
            Reply::Bye => f.write_str("bye"),
        }
    }
}

impl Display for Shown<'_, Box<ResultV1>> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "result of call {}, generator ran {} times",
            self.0.call_id, self.0.observed_generator_calls
        )
    }
}

impl Display for Shown<'_, JoinReply> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            JoinReply::Waiting { joined, world_size } => write!(f, "waits, {joined} of {world_size} ranks"),
            JoinReply::Assigned(assignment) => write!(
                f,
                "epoch {} rank {} of {}",
                assignment.mesh_epoch, assignment.rank, assignment.world_size
            ),
        }
    }
}

impl Display for Shown<'_, LinkDescriptor> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.0.link_epoch)
    }
}

impl Display for Shown<'_, Ack> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("ok")
    }
}

impl Display for Shown<'_, ()> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("ok")
    }
}
