//! A rank's way to the others during one call.

use std::time::Instant;

use collectives::{Collective, CollectiveError, ReduceOp};
use tch::Tensor;

/// The collective of the mesh and the instant by which the running call must be over.
#[derive(Clone, Copy)]
pub struct Tp<'a> {
    pub collective: &'a dyn Collective,
    pub deadline: Instant,
}

impl Tp<'_> {
    /// Number of ranks.
    pub fn world(&self) -> u32 {
        self.collective.world_size()
    }

    /// Replaces a contiguous tensor by its sum over the ranks.
    ///
    /// # Errors
    /// A rank is gone, out of step or late.
    pub fn sum(&self, tensor: &mut Tensor) -> Result<(), CollectiveError> {
        if self.world() == 1 {
            return Ok(());
        }
        self.collective.all_reduce(tensor, ReduceOp::Sum, self.deadline)
    }
}
