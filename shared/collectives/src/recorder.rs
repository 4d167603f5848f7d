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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tch::{Device, Kind};

    use super::*;
    use crate::{Rendezvous, Solo};

    #[test]
    fn only_an_all_reduce_is_recorded_and_only_where_the_transport_can() {
        let by = Instant::now() + Duration::from_secs(10);
        let mut tensor = Tensor::ones([2], (Kind::Float, Device::Cpu));
        let refused = |result: Result<(), CollectiveError>| {
            assert!(matches!(&result, Err(CollectiveError::BadTensor(_))), "{result:?}");
        };
        let solo = Solo::new();
        let recorder = Recorder(&solo);
        recorder.all_reduce(&mut tensor, ReduceOp::Sum, by).unwrap();
        refused(recorder.broadcast(&mut tensor, 0, by));
        refused(recorder.barrier(by));

        // Shared memory is the host's work: nothing of it could be in a graph.
        let loopback = Rendezvous::create(Device::Cpu, 1).unwrap().connect(Device::Cpu, 0, 1, by).unwrap();
        assert!(!loopback.records());
        refused(Recorder(&*loopback).all_reduce(&mut tensor, ReduceOp::Sum, by));
        loopback.barrier(by).expect("a refusal is not the end of the group");
    }
}
