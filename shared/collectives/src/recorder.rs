use std::time::Instant;

use tch::Tensor;

use crate::{Collective, CollectiveError, ReduceOp};

/// A group while a graph is captured: its all-reduces are recorded instead of made, and nothing else can be.
pub struct Recorder<'a>(pub &'a dyn Collective);

impl Collective for Recorder<'_> {
    fn rank(&self) -> u32 {
        self.0.rank()
    }

    fn world_size(&self) -> u32 {
        self.0.world_size()
    }

    fn all_reduce(&self, tensor: &mut Tensor, op: ReduceOp, by: Instant) -> Result<(), CollectiveError> {
        self.0.record_all_reduce(tensor, op, by)
    }

    fn broadcast(&self, _: &mut Tensor, _: u32, _: Instant) -> Result<(), CollectiveError> {
        Err(CollectiveError::BadTensor("a broadcast cannot be recorded".to_owned()))
    }

    fn barrier(&self, _: Instant) -> Result<(), CollectiveError> {
        Err(CollectiveError::BadTensor("a barrier cannot be recorded".to_owned()))
    }

    fn abort(&self, reason: &str) {
        self.0.abort(reason);
    }
}
