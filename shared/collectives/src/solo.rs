use std::sync::OnceLock;
use std::time::Instant;

use tch::Tensor;

use crate::{Collective, CollectiveError, ReduceOp};

/// The group of one rank: nothing to wait for, so only [`Collective::abort`] leaves a trace.
#[derive(Debug, Default)]
pub struct Solo {
    aborted: OnceLock<String>,
}

impl Solo {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn check(&self) -> Result<(), CollectiveError> {
        match self.aborted.get() {
            Some(reason) => Err(CollectiveError::Aborted { reason: reason.clone() }),
            None => Ok(()),
        }
    }
}

impl Collective for Solo {
    fn rank(&self) -> u32 {
        0
    }

    fn world_size(&self) -> u32 {
        1
    }

    fn all_reduce(&self, _: &mut Tensor, _: ReduceOp, _: Instant) -> Result<(), CollectiveError> {
        self.check()
    }

    fn broadcast(&self, _: &mut Tensor, root: u32, _: Instant) -> Result<(), CollectiveError> {
        if root != 0 {
            return Err(CollectiveError::BadTensor(format!("root is {root}: only 0 is in a group of 1")));
        }
        self.check()
    }

    fn barrier(&self, _: Instant) -> Result<(), CollectiveError> {
        self.check()
    }

    /// There is nothing that could not be recorded.
    fn records(&self) -> bool {
        true
    }

    fn record_all_reduce(&self, _: &mut Tensor, _: ReduceOp, _: Instant) -> Result<(), CollectiveError> {
        self.check()
    }

    fn abort(&self, reason: &str) {
        // A second reason is not news.
        let _ = self.aborted.set(reason.to_owned());
    }
}
