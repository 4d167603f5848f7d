//! What the controller's shell tells it, and what it tells its shell to do.

use std::time::Instant;

use contract::envelope::{EnvelopeV1, HelloReply, Infer, Reply, ResultV1};
use contract::{CallId, Error, LeaseEpoch, MeshEpoch, SessionSlot};

use crate::{ExitCode, Ticket};

#[derive(Clone, Debug)]
pub enum Input {
    Tick,
    /// The leader's status names its mesh epoch.
    Mesh {
        epoch: MeshEpoch,
    },
    Infer {
        ticket: Ticket,
        infer: Box<Infer>,
        deadline: Instant,
    },
    Reset {
        slot: SessionSlot,
    },
    /// An operator wants the mesh to stop.
    Shutdown {
        reason: String,
    },
    /// The answer to [`Action::Send`], or the error that stands for none.
    Answered {
        call: CallId,
        result: Box<Result<Reply, Error>>,
    },
    /// The answer to [`Action::Attach`].
    Attached {
        lease: LeaseEpoch,
        result: Result<(), Error>,
    },
    /// The link can carry nothing any more.
    LinkFailed {
        error: Error,
    },
    Bye,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Request on the mesh's subject; [`Input::Answered`] follows by the deadline.
    Send {
        envelope: Box<EnvelopeV1>,
        deadline: Instant,
    },
    /// Open the link that HELLO describes; [`Input::Attached`] follows.
    Attach(Box<HelloReply>),
    /// Calls are possible now.
    Ready(Box<HelloReply>),
    /// HELLO was refused or its link could not be opened; it is tried again.
    Refused(Error),
    /// The lease is gone: drop the link, every history on the mesh is lost.
    Lost(Error),
    Deliver {
        ticket: Ticket,
        result: Result<Box<ResultV1>, Error>,
    },
    /// No link slot of this call may be written or freed until [`Action::Release`] or [`Action::Lost`].
    Quarantine {
        call: CallId,
    },
    Release {
        call: CallId,
    },
    Exit {
        code: ExitCode,
        reason: String,
    },
}
