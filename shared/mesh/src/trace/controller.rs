use std::fmt::{self, Display, Formatter};

use contract::envelope::{Action as Ask, Reply};
use contract::{Error, Reason};

use super::{Outcome, Shown};
use crate::controller::{Action, Input};

impl Input {
    #[must_use]
    pub fn is_routine(&self) -> bool {
        match self {
            // The epoch is named with every tick; that it is another one shows in what follows.
            Self::Tick | Self::Mesh { .. } => true,
            Self::Answered { result, .. } => matches!(**result, Ok(Reply::Noop(_))),
            _ => false,
        }
    }
}

impl Display for Input {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick => f.write_str("tick"),
            Self::Mesh { epoch } => write!(f, "mesh epoch {epoch}"),
            Self::Infer { ticket, infer, .. } => write!(
                f,
                "#{} infer session {} chunk {} cache {}",
                ticket.0, infer.session, infer.chunk_index, infer.cache_epoch
            ),
            Self::Reset { slot } => write!(f, "reset slot {slot}"),
            Self::Shutdown { reason } => write!(f, "shutdown: {reason}"),
            Self::Answered { call, result } => {
                write!(f, "call {call} answered: {}", Outcome(result))
            }
            Self::Attached { lease, result } => {
                write!(f, "link of lease {lease}: {}", Outcome(result))
            }
            Self::LinkFailed { error } => write!(f, "the link failed: {error}"),
            Self::Bye => f.write_str("bye"),
        }
    }
}

impl Action {
    /// What went wrong, where this is a call that failed or a lease that was lost.
    #[must_use]
    pub fn fault(&self) -> Option<&Error> {
        let error = match self {
            Self::Lost(error) => error,
            Self::Deliver { result, .. } => result.as_ref().err()?,
            _ => return None,
        };
        // Asked again with the tensor; or this controller ends.
        (!matches!(error.reason, Reason::UnknownConditioning | Reason::SessionEnded)).then_some(error)
    }

    #[must_use]
    pub fn is_routine(&self) -> bool {
        matches!(self, Self::Send { envelope, .. } if matches!(envelope.action, Ask::Noop))
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send { envelope, .. } => write!(f, "send {}", Shown(&**envelope)),
            Self::Attach(hello) => {
                write!(f, "attach link {} of lease {}", hello.link.link_epoch, hello.lease)
            }
            Self::Ready(hello) => write!(f, "ready under lease {}", hello.lease),
            Self::Refused(error) => write!(f, "refused: {error}"),
            Self::Lost(error) => write!(f, "lease lost: {error}"),
            Self::Deliver { ticket, result } => write!(f, "#{} deliver {}", ticket.0, Outcome(result)),
            Self::Quarantine { call } => write!(f, "quarantine call {call}"),
            Self::Release { call } => write!(f, "release call {call}"),
            Self::Exit { code, reason } => write!(f, "exit {}: {reason}", code.code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ticket;

    #[test]
    fn a_call_that_failed_is_a_fault_unless_it_is_asked_again_or_everything_ends() {
        let failed = |reason| Action::Deliver { ticket: Ticket(1), result: Err(Error::new(reason, "x")) };
        assert_eq!(failed(Reason::BudgetSpent).fault().map(|e| e.reason), Some(Reason::BudgetSpent));
        assert_eq!(
            Action::Lost(Error::new(Reason::Recovering, "x")).fault().map(|e| e.reason),
            Some(Reason::Recovering)
        );
        assert!(failed(Reason::UnknownConditioning).fault().is_none());
        assert!(Action::Lost(Error::new(Reason::SessionEnded, "x")).fault().is_none());
    }
}
