use std::fmt::{self, Display, Formatter};

use contract::envelope::{Action as Ask, Reply};
use contract::tp::JoinReply;

use super::{Outcome, Shown};
use crate::leader::{Action, Input, LoadFailure};

impl Input {
    #[must_use]
    pub fn is_routine(&self) -> bool {
        match self {
            // A worker that waits asks again and again; the answer that ends it is no routine.
            Self::Tick | Self::Join { .. } => true,
            Self::Beat(beat) => beat.fault.is_none() && !beat.leaving,
            Self::Sought { gone, .. } => !gone,
            Self::Call { envelope, .. } => matches!(envelope.action, Ask::Noop),
            _ => false,
        }
    }
}

impl Display for Input {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick => f.write_str("tick"),
            Self::EpochTaken { epoch, .. } => write!(f, "epoch {epoch} taken"),
            Self::EpochLost { reason } => write!(f, "epoch lost: {reason}"),
            Self::Join { ticket, request } => {
                write!(f, "#{} join by {}", ticket.0, request.instance)?;
                match request.holds {
                    Some((rank, world_size)) => write!(f, " with rank {rank} of {world_size}"),
                    None => Ok(()),
                }
            }
            Self::Call { ticket, envelope, .. } => write!(f, "#{} {}", ticket.0, Shown(&**envelope)),
            Self::Sought { lease, gone } => {
                write!(
                    f,
                    "holder of lease {}: {}",
                    lease.epoch,
                    if *gone { "gone" } else { "not known to be gone" }
                )
            }
            Self::LinkOpened { lease, result } => {
                write!(f, "link of lease {}: {}", lease.epoch, Outcome(result))
            }
            Self::Fetched { plan_id, result } => {
                write!(f, "tensors of plan {}: {}", plan_id.0, Outcome(result))
            }
            Self::Answered { rank, verb, plan_id, result, .. } => {
                write!(f, "plan {}: {} at rank {rank}: ", plan_id.0, verb.as_str())?;
                Outcome(result).fmt(f)
            }
            Self::Loaded { epoch, result } => {
                write!(f, "epoch {epoch} loaded: ")?;
                loaded(result, f)
            }
            Self::Ran { plan_id, result, .. } => match result {
                Ok(report) => write!(
                    f,
                    "plan {} ran: {} to {} calls, digests {}",
                    plan_id.0,
                    report.least_calls,
                    report.most_calls,
                    if report.digests_agree { "agree" } else { "differ" }
                ),
                Err(error) => write!(f, "plan {} ran: {error}", plan_id.0),
            },
            Self::Beat(beat) => {
                let leaving = if beat.leaving { ", leaving" } else { "" };
                write!(f, "beat of rank {} {}{leaving}", beat.rank, beat.phase.as_str())?;
                match &beat.fault {
                    Some(fault) => write!(f, ": {fault}"),
                    None => Ok(()),
                }
            }
            Self::Gone { epoch, rank, instance, why } => {
                write!(f, "rank {rank} ({instance}) of epoch {epoch} gone: {why}")
            }
            Self::Drain => f.write_str("drain"),
        }
    }
}

pub(super) fn loaded(result: &Result<(), LoadFailure>, f: &mut Formatter<'_>) -> fmt::Result {
    match result {
        Ok(()) => f.write_str("ok"),
        Err(failure) => write!(f, "{}", failure.error()),
    }
}

impl Action {
    /// Whether this ends an epoch; the view says why.
    #[must_use]
    pub fn ends_epoch(&self) -> bool {
        matches!(self, Self::CloseEpoch)
    }

    #[must_use]
    pub fn is_routine(&self) -> bool {
        match self {
            Self::RelayNoop(_) | Self::Seek { .. } => true,
            Self::Answer { result, .. } => matches!(result, Ok(Reply::Noop(_))),
            Self::AnswerJoin { result, .. } => matches!(result, Ok(JoinReply::Waiting { .. })),
            _ => false,
        }
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::TakeEpoch => f.write_str("take an epoch"),
            Self::CloseEpoch => f.write_str("close the epoch"),
            Self::AnswerJoin { ticket, result } => {
                write!(f, "#{} join: {}", ticket.0, Outcome(result))
            }
            Self::Answer { ticket, result } => write!(f, "#{} answer {}", ticket.0, Outcome(result)),
            Self::Seek { lease } => write!(f, "look for the holder of lease {}", lease.epoch),
            Self::OpenLink { lease } => write!(f, "open the link of lease {}", lease.epoch),
            Self::CloseLink => f.write_str("close the link"),
            Self::Fetch { plan, .. } => write!(f, "fetch tensors of {}", Shown(&**plan)),
            Self::Send { rank, verb, plan_id, .. } => {
                write!(f, "plan {}: {} to rank {rank}", plan_id.0, verb.as_str())
            }
            Self::Load { epoch, .. } => write!(f, "load for epoch {epoch}"),
            Self::Run { plan, .. } => write!(f, "run {}", Shown(&**plan)),
            Self::Abort { reason } => write!(f, "abort: {reason}"),
            Self::RelayNoop(_) => f.write_str("relay noop"),
            Self::PublishShutdown(shutdown) => write!(f, "shutdown to all ranks: {}", shutdown.reason),
            Self::Exit { code, reason } => write!(f, "exit {}: {reason}", code.code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use contract::tp::PlanId;
    use contract::{Error, MeshEpoch, Rank, Reason};

    use super::*;
    use crate::leader::Verb;

    #[test]
    fn an_answer_names_rank_plan_and_what_came_of_it() {
        let answered = |result| Input::Answered {
            epoch: MeshEpoch(3),
            rank: Rank(1),
            verb: Verb::Plan,
            plan_id: PlanId(7),
            result,
        };
        assert_eq!(answered(Ok(())).to_string(), "plan 7: plan at rank 1: ok");
        let nack = answered(Err(Error::new(Reason::Busy, "plan 6 is running"))).to_string();
        assert!(nack.ends_with("unavailable: busy: plan 6 is running"), "{nack}");
    }

    #[test]
    fn ticks_are_routine_and_a_lost_rank_is_not() {
        assert!(Input::Tick.is_routine());
        assert!(!Input::Drain.is_routine() && !Action::CloseEpoch.is_routine());
    }
}
