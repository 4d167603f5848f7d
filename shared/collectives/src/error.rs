/// Why a collective call did not happen. `op` is `all_reduce`, `broadcast`, `barrier`, `replay`, `send`, `receive` or `connect`.
#[derive(thiserror::Error, Clone, Debug, PartialEq, Eq)]
pub enum CollectiveError {
    /// The deadline passed; the group is poisoned.
    #[error("{op} timed out on rank {rank}: waited for ranks {missing:?}")]
    Timeout { op: &'static str, rank: u32, missing: Vec<u32> },
    /// This rank or a peer aborted or failed earlier.
    #[error("collective aborted: {reason}")]
    Aborted { reason: String },
    /// Two ranks entered different calls: the lock step is broken.
    #[error("{op} on rank {rank} does not match rank {peer}: {ours} here, {theirs} there")]
    Mismatch { op: &'static str, rank: u32, peer: u32, ours: String, theirs: String },
    /// The caller's tensor or arguments cannot be used; nothing was sent.
    #[error("bad tensor: {0}")]
    BadTensor(String),
    /// The transport could not be set up or failed.
    #[error("{0}")]
    Io(String),
}

impl From<device::DriverFailure> for CollectiveError {
    fn from(failure: device::DriverFailure) -> Self {
        Self::Io(failure.to_string())
    }
}
