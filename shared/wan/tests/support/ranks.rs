//! Ranks as threads of one process.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use collectives::loopback::{Loopback, Rendezvous};
use collectives::{Collective, CollectiveError, ReduceOp};
use tch::{Device, Tensor};
use wan::dit::Tp;

/// Runs `work` on `world` ranks that are joined by a collective, and returns what each gave, by rank.
pub(crate) fn run<T: Send>(world: u32, work: impl Fn(u32, &Recorder) -> T + Sync) -> Vec<T> {
    let deadline = Instant::now() + Duration::from_secs(120);
    let rendezvous = Rendezvous::create(world).unwrap();
    std::thread::scope(|scope| {
        let (rendezvous, work) = (&rendezvous, &work);
        let rank = |rank| {
            let inner = Loopback::connect(rendezvous, rank, world, deadline).unwrap();
            work(rank, &Recorder { inner, deadline, sums: Mutex::default() })
        };
        let threads: Vec<_> = (0..world).map(|r| scope.spawn(move || rank(r))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// A rank's end that keeps what went into each sum and what came out.
pub(crate) struct Recorder {
    inner: Loopback,
    deadline: Instant,
    sums: Mutex<Vec<(Tensor, Tensor)>>,
}

impl Recorder {
    pub(crate) fn tp(&self) -> Tp<'_> {
        Tp { collective: self, deadline: self.deadline }
    }

    /// This rank's contribution and the result of each all-reduce so far.
    pub(crate) fn take(&self) -> Vec<(Tensor, Tensor)> {
        std::mem::take(&mut self.sums.lock().unwrap())
    }
}

impl Collective for Recorder {
    fn rank(&self) -> u32 {
        self.inner.rank()
    }

    fn world_size(&self) -> u32 {
        self.inner.world_size()
    }

    fn all_reduce(
        &self,
        tensor: &mut Tensor,
        op: ReduceOp,
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        let before = tensor.copy();
        // Threads meet in memory of the host, wherever their tensors are.
        let mut sum = tensor.to_device(Device::Cpu);
        self.inner.all_reduce(&mut sum, op, deadline)?;
        tensor.copy_(&sum);
        self.sums.lock().unwrap().push((before, tensor.copy()));
        Ok(())
    }

    fn broadcast(&self, tensor: &mut Tensor, root: u32, deadline: Instant) -> Result<(), CollectiveError> {
        self.inner.broadcast(tensor, root, deadline)
    }

    fn barrier(&self, deadline: Instant) -> Result<(), CollectiveError> {
        self.inner.barrier(deadline)
    }

    fn abort(&self, reason: &str) {
        self.inner.abort(reason);
    }
}
