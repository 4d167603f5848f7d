//! Collective operations between the ranks of a mesh: all-reduce, broadcast, barrier, abort.
//!
//! All ranks make the same calls in the same order with tensors of the same dtype and element count; every call has a
//! deadline. [`loopback`] joins processes or threads of one host over shared memory, for CPU tensors; [`nccl`] joins
//! processes with a GPU each. [`Rendezvous`] chooses by device.

mod error;
pub mod loopback;
pub mod nccl;
mod recorder;
mod rendezvous;
mod solo;
mod tensor;

use std::time::Instant;

use tch::Tensor;

pub use crate::error::CollectiveError;
pub use crate::recorder::Recorder;
pub use crate::rendezvous::Rendezvous;
pub use crate::solo::Solo;

/// How the contributions of the ranks become one value; in which order, the transport says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    Sum,
    Min,
    Max,
}

impl ReduceOp {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Min => "min",
            Self::Max => "max",
        }
    }
}

/// One rank's end of a group. After any error but [`CollectiveError::BadTensor`] the group is of no further use: the
/// ranks are out of step, so every later call on every rank returns [`CollectiveError::Aborted`].
///
/// Calls of one rank come from one thread at a time ([`Collective::abort`] excepted): an overlapping one has no place in
/// the order and is a `Mismatch`.
pub trait Collective: Send + Sync {
    fn rank(&self) -> u32;

    fn world_size(&self) -> u32;

    /// Replaces `tensor` (contiguous; f32, f64, bf16 or i64) on every rank by the reduction over all ranks. The result
    /// has the same bits on every rank.
    ///
    /// # Errors
    /// `BadTensor` before anything is sent; `Timeout`, `Aborted`, `Mismatch`, `Io` leave `tensor` unspecified.
    fn all_reduce(&self, tensor: &mut Tensor, op: ReduceOp, deadline: Instant)
    -> Result<(), CollectiveError>;

    /// Replaces `tensor` (contiguous; f32, f64, bf16 or i64) on every rank by `root`'s.
    ///
    /// # Errors
    /// As [`Collective::all_reduce`].
    fn broadcast(&self, tensor: &mut Tensor, root: u32, deadline: Instant) -> Result<(), CollectiveError>;

    /// Returns when every rank has entered.
    ///
    /// # Errors
    /// `Timeout`, `Aborted`, `Mismatch`, `Io`.
    fn barrier(&self, deadline: Instant) -> Result<(), CollectiveError>;

    /// Whether an all-reduce can be part of a graph that a GPU launches as a whole, by the two calls below.
    fn records(&self) -> bool {
        false
    }

    /// Puts an all-reduce into torch's current stream, which is being captured, and returns at once; the device does it each
    /// time the graph is launched.
    ///
    /// # Errors
    /// `BadTensor` before anything changes, also where nothing can be recorded; `Timeout`, `Aborted`, `Io`.
    fn record_all_reduce(
        &self,
        tensor: &mut Tensor,
        op: ReduceOp,
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        let _ = (tensor, op, deadline);
        Err(CollectiveError::BadTensor("this transport records nothing".to_owned()))
    }

    /// Calls `launch`, which gives torch's default stream a graph with recorded operations, as one call of this group: where it
    /// has any, it returns when the device has done them.
    ///
    /// # Errors
    /// What `launch` says; `Timeout`, `Aborted`, `Io`.
    fn replay(
        &self,
        deadline: Instant,
        launch: &mut dyn FnMut() -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let _ = deadline;
        launch()
    }

    /// From any thread: every blocked and every later call on this rank returns `Aborted`; peers see it too where the
    /// transport can tell them. The first reason stands.
    fn abort(&self, reason: &str);

    /// Waits until an aborted group has given back what it holds of the device; whether it has by then. A group that
    /// holds nothing has at once.
    fn freed(&self, by: Instant) -> bool {
        let _ = by;
        true
    }
}
