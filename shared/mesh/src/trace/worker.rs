use std::fmt::{self, Display, Formatter};

use contract::tp::JoinReply;
use contract::{Class, Reason};

use super::leader::loaded;
use super::{Outcome, Shown};
use crate::worker::{Action, Input};

impl Input {
    #[must_use]
    pub fn is_routine(&self) -> bool {
        match self {
            Self::Tick => true,
            Self::Beat(beat) => beat.fault.is_none() && !beat.leaving,
            // Asked again and again until there is a leader and every rank.
            Self::JoinAnswered(Ok(reply)) => matches!(reply, JoinReply::Waiting { .. }),
            Self::JoinAnswered(Err(error)) => {
                matches!(error.class(), Class::Unavailable | Class::DeadlineExceeded)
            }
            _ => false,
        }
    }
}

impl Display for Input {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick => f.write_str("tick"),
            Self::JoinAnswered(result) => write!(f, "join: {}", Outcome(result)),
            Self::Plan { ticket, request } => write!(f, "#{} {}", ticket.0, Shown(&request.plan)),
            Self::Go { ticket, reference } => {
                write!(
                    f,
                    "#{} go for plan {}, {} ms left",
                    ticket.0, reference.plan_id.0, reference.budget_ms
                )
            }
            Self::Cancel { ticket, reference } => {
                write!(f, "#{} cancel of plan {}", ticket.0, reference.plan_id.0)
            }
            Self::Beat(beat) => {
                write!(f, "beat of the leader {}", beat.phase.as_str())?;
                match &beat.fault {
                    Some(fault) => write!(f, ": {fault}"),
                    None => Ok(()),
                }
            }
            Self::LeaderGone { epoch, why } => write!(f, "leader of epoch {epoch} gone: {why}"),
            Self::Loaded { epoch, result } => {
                write!(f, "epoch {epoch} loaded: ")?;
                loaded(result, f)
            }
            Self::Ran { plan_id, result, .. } => {
                write!(f, "plan {} ran: {}", plan_id.0, Outcome(result))
            }
            Self::Shutdown(shutdown) => write!(f, "shutdown: {}", shutdown.reason),
            Self::Drain => f.write_str("drain"),
        }
    }
}

impl Action {
    /// Why the epoch was left, or the invariant that the leader broke.
    #[must_use]
    pub fn fault(&self) -> Option<&dyn Display> {
        match self {
            Self::Leave { reason } => Some(reason),
            Self::Answer { result: Err(error), .. } if error.reason == Reason::Internal => Some(error),
            _ => None,
        }
    }

    #[must_use]
    pub fn is_routine(&self) -> bool {
        matches!(self, Self::AskJoin(_))
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::AskJoin(_) => f.write_str("ask to join"),
            Self::Enter(assignment) => write!(f, "enter epoch {}", assignment.mesh_epoch),
            Self::Load { assignment, .. } => write!(f, "load for epoch {}", assignment.mesh_epoch),
            Self::Answer { ticket, result } => write!(f, "#{} answer {}", ticket.0, Outcome(result)),
            Self::Run { plan, .. } => write!(f, "run {}", Shown(&**plan)),
            Self::Abort { reason } => write!(f, "abort: {reason}"),
            Self::Leave { reason } => write!(f, "leave: {reason}"),
            Self::Exit { code, reason } => write!(f, "exit {}: {reason}", code.code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use contract::tp::{PlanId, PlanRef};
    use contract::{Digest, Error, MeshEpoch};

    use super::*;
    use crate::Ticket;

    #[test]
    fn a_go_names_its_plan_and_the_time_that_is_left() {
        let reference = PlanRef {
            mesh_epoch: MeshEpoch(3),
            plan_id: PlanId(7),
            digest: Digest::of(&[]),
            budget_ms: 1_900,
        };
        let go = Input::Go { ticket: Ticket(4), reference };
        assert_eq!(go.to_string(), "#4 go for plan 7, 1900 ms left");
        assert!(!go.is_routine());
    }

    #[test]
    fn an_epoch_left_and_a_broken_invariant_are_faults_and_a_nack_is_none() {
        let nack = |reason| Action::Answer { ticket: Ticket(1), result: Err(Error::new(reason, "x")) };
        let left = Action::Leave { reason: "leader: no beat for 5000 ms".to_owned() };
        assert_eq!(left.fault().map(ToString::to_string).as_deref(), Some("leader: no beat for 5000 ms"));
        assert!(nack(Reason::Internal).fault().is_some());
        assert!(nack(Reason::Busy).fault().is_none());
    }

    #[test]
    fn waiting_for_a_leader_is_routine_and_being_refused_is_not() {
        let refused = |reason| Input::JoinAnswered(Err(Error::new(reason, "no")));
        assert!(refused(Reason::NoResponders).is_routine());
        assert!(!refused(Reason::TpPlanMismatch).is_routine());
    }
}
