//! What a failed collective or generator call means to the protocol.

use collectives::CollectiveError;
use contract::{Error, Reason};
use wan::dit::DitError;
use wan::generator::GenerateError;

pub(crate) fn collective(error: &CollectiveError) -> Error {
    let reason = match error {
        CollectiveError::Timeout { .. } => Reason::BudgetSpent,
        CollectiveError::Aborted { .. } => Reason::CallAborted,
        CollectiveError::Mismatch { .. } | CollectiveError::BadTensor(_) | CollectiveError::Io(_) => {
            Reason::Internal
        }
    };
    Error::new(reason, error.to_string())
}

pub(crate) fn generator(error: &GenerateError) -> Error {
    match error {
        GenerateError::Dit(DitError::Collective(error)) | GenerateError::Collective(error) => {
            collective(error)
        }
        other => Error::new(Reason::Internal, "the generator failed").detail(other.to_string()),
    }
}

pub(crate) fn torch(what: &str, error: &tch::TchError) -> Error {
    Error::new(Reason::Internal, what).detail(error.to_string())
}
