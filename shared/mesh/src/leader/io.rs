//! What the leader's shell tells it, and what it tells its shell to do.

use std::time::Instant;

use contract::envelope::{EnvelopeV1, Infer, Lease, MeshTimings, Reply};
use contract::link::LinkDescriptor;
use contract::tensor::TensorSpec;
use contract::tp::{Beat, JoinReply, JoinRequest, Plan, PlanId, PlanRef, PlanRequest, TpNoop, TpShutdown};
use contract::{Digest, Error, InstanceId, MeshEpoch, Rank};

use crate::{ExitCode, Ticket};

#[derive(Clone, Debug)]
pub enum Input {
    Tick,
    /// The answer to [`Action::TakeEpoch`].
    EpochTaken {
        epoch: MeshEpoch,
        /// Rendezvous of the epoch's collective.
        collective: Vec<u8>,
        /// `host:port` of the liveness socket.
        liveness: String,
    },
    /// The leader key is not ours, or could not be taken.
    EpochLost {
        reason: String,
    },
    Join {
        ticket: Ticket,
        request: JoinRequest,
    },
    /// A controller's envelope; `digest` is that of its bytes.
    Call {
        ticket: Ticket,
        envelope: Box<EnvelopeV1>,
        digest: Digest,
        deadline: Instant,
    },
    /// The answer to [`Action::Seek`].
    Sought {
        lease: Lease,
        /// The broker has no connection of it.
        gone: bool,
    },
    /// The answer to [`Action::OpenLink`].
    LinkOpened {
        lease: Lease,
        result: Result<LinkDescriptor, Error>,
    },
    /// The answer to [`Action::Fetch`].
    Fetched {
        plan_id: PlanId,
        result: Result<(), Error>,
    },
    /// The answer to [`Action::Send`].
    Answered {
        epoch: MeshEpoch,
        rank: Rank,
        verb: Verb,
        plan_id: PlanId,
        result: Result<(), Error>,
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
        result: Result<Box<RunReport>, Error>,
    },
    /// A beat from a worker's liveness socket.
    Beat(Beat),
    /// A worker's liveness socket ended.
    Gone {
        epoch: MeshEpoch,
        rank: Rank,
        instance: InstanceId,
        why: String,
    },
    /// The process was asked to stop.
    Drain,
}

/// What was sent to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    Plan,
    Go,
    Cancel,
}

impl Verb {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Go => "go",
            Self::Cancel => "cancel",
        }
    }
}

/// Why a mesh did not load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadFailure {
    /// This rank's own weights are the trouble.
    Own(Error),
    /// This rank's device has no room for its shard: no restart mends that.
    NoRoom(Error),
    /// The load_ok all-reduce says that another rank's are.
    Peer(Error),
    /// The ranks did not meet.
    Group(Error),
    /// This process cannot use its device any more: only a new one helps.
    Stuck(Error),
}

impl LoadFailure {
    #[must_use]
    pub fn error(&self) -> &Error {
        match self {
            Self::Own(error)
            | Self::NoRoom(error)
            | Self::Peer(error)
            | Self::Group(error)
            | Self::Stuck(error) => error,
        }
    }
}

/// What rank 0 knows after a lockstep run that no rank broke off.
#[derive(Clone, Debug, PartialEq)]
pub struct RunReport {
    /// Least and greatest number of generator forwards over all ranks.
    pub least_calls: u32,
    pub most_calls: u32,
    /// Whether all ranks computed the same bytes.
    pub digests_agree: bool,
    pub digest: Digest,
    /// `broadcast_us`, `generator_us` and `finish_us`.
    pub timings: MeshTimings,
    /// Where the latents lie in the link; absent for runs that no controller asked for.
    pub latents_out: Result<Option<TensorSpec>, Error>,
}

/// Where rank 0 gets the tensors of a run from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The link of this lease.
    Link { lease: Lease, infer: Box<Infer> },
    /// Fixed values for warm-up and canary runs.
    Fixed { seed: u64 },
}

/// Body of a message to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Plan(Box<PlanRequest>),
    Reference(PlanRef),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Take the leader key anew and make a rendezvous; [`Input::EpochTaken`] or [`Input::EpochLost`] follows.
    TakeEpoch,
    /// The epoch is over: close its liveness sockets, endpoints and link.
    CloseEpoch,
    AnswerJoin {
        ticket: Ticket,
        result: Result<JoinReply, Error>,
    },
    Answer {
        ticket: Ticket,
        result: Result<Reply, Error>,
    },
    /// Look whether the holder of this lease is still there; [`Input::Sought`] follows.
    Seek {
        lease: Lease,
    },
    /// Allocate a new link for this lease; [`Input::LinkOpened`] follows.
    OpenLink {
        lease: Lease,
    },
    CloseLink,
    /// Copy the tensors of a plan out of their source; [`Input::Fetched`] follows.
    Fetch {
        plan: Box<Plan>,
        source: Source,
    },
    /// Send to a worker; [`Input::Answered`] follows.
    Send {
        epoch: MeshEpoch,
        rank: Rank,
        verb: Verb,
        plan_id: PlanId,
        message: Message,
        deadline: Instant,
    },
    /// Load this rank's shard and meet the others; [`Input::Loaded`] follows.
    Load {
        epoch: MeshEpoch,
        deadline: Instant,
    },
    /// Run a plan whose tensors were fetched; [`Input::Ran`] follows. `deliver` names the lease whose link gets the latents.
    Run {
        plan: Box<Plan>,
        deadline: Instant,
        deliver: Option<Lease>,
    },
    /// Make every blocked collective call return.
    Abort {
        reason: String,
    },
    RelayNoop(TpNoop),
    PublishShutdown(TpShutdown),
    Exit {
        code: ExitCode,
        reason: String,
    },
}
