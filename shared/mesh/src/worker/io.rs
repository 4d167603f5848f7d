//! What a worker's shell tells it, and what it tells its shell to do.

use std::time::Instant;

use contract::tp::{
    Ack, Assignment, Beat, JoinReply, JoinRequest, Plan, PlanId, PlanRef, PlanRequest, TpShutdown,
};
use contract::{Error, MeshEpoch};

use crate::leader::LoadFailure;
use crate::{ExitCode, Ticket};

#[derive(Clone, Debug)]
pub enum Input {
    Tick,
    /// The answer to [`Action::AskJoin`].
    JoinAnswered(Result<JoinReply, Error>),
    Plan {
        ticket: Ticket,
        request: Box<PlanRequest>,
    },
    Go {
        ticket: Ticket,
        reference: PlanRef,
    },
    Cancel {
        ticket: Ticket,
        reference: PlanRef,
    },
    /// A beat from the leader's liveness socket.
    Beat(Beat),
    /// The liveness socket of this epoch ended.
    LeaderGone {
        epoch: MeshEpoch,
        why: String,
    },
    /// The answer to [`Action::Load`].
    Loaded {
        epoch: MeshEpoch,
        result: Result<(), LoadFailure>,
    },
    /// The answer to [`Action::Run`].
    Ran {
        epoch: MeshEpoch,
        plan_id: PlanId,
        result: Result<(), Error>,
    },
    Shutdown(TpShutdown),
    /// The process was asked to stop.
    Drain,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Ask the leader for a rank; [`Input::JoinAnswered`] follows.
    AskJoin(JoinRequest),
    /// Serve the endpoints of this rank and open the liveness socket.
    Enter(Assignment),
    /// Load this rank's shard and meet the others; [`Input::Loaded`] follows.
    Load {
        assignment: Assignment,
        deadline: Instant,
    },
    Answer {
        ticket: Ticket,
        result: Result<Ack, Error>,
    },
    /// Enter the collective; [`Input::Ran`] follows.
    Run {
        plan: Box<Plan>,
        deadline: Instant,
    },
    /// Make every blocked collective call return.
    Abort {
        reason: String,
    },
    /// Tell the leader why, close the liveness socket and the endpoints.
    Leave {
        reason: String,
    },
    Exit {
        code: ExitCode,
        reason: String,
    },
}
