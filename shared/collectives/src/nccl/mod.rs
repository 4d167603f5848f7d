//! Ranks with a GPU each, on one host or several, over NCCL.
//!
//! A call puts NCCL's work into torch's stream, after that of the tensor, and returns when the device has done it: so a
//! deadline ends a call whose peer is missing, and the tensor can be used at once. Nothing is copied through the host.
//!
//! NCCL compares neither operations nor sizes: where the lock step is broken, calls end in a timeout or an error of NCCL
//! instead of a `Mismatch`. Sums have the same bits on every rank, in an order of NCCL's choice.

mod communicator;
mod gpu;
mod life;
mod rendezvous;

use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};
use std::{hint, thread};

use cudarc::nccl::sys;
use tch::{Device, Kind, Tensor};

use self::communicator::{Communicator, Progress};
use self::gpu::Gpu;
use self::life::Life;
pub use self::rendezvous::Rendezvous;
use crate::tensor::Elements;
use crate::{Collective, CollectiveError, ReduceOp};

/// An abort that takes longer has failed: the process has to go.
pub const ABORT: Duration = Duration::from_secs(2);
/// A collective between two GPUs takes tens of microseconds: so long a waiting rank does not give its core away.
const SPIN: Duration = Duration::from_millis(1);
const PAUSE: Duration = Duration::from_micros(50);
/// How often a waiting rank asks NCCL whether something went wrong.
const LOOK: Duration = Duration::from_millis(1);

/// Whether NCCL can be opened in this process.
///
/// # Errors
/// `Io`, naming the library.
pub fn available() -> Result<(), CollectiveError> {
    // SAFETY: opening a library runs its initialisers; NCCL is made for that.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    let text =
        "libnccl.so cannot be opened: not on the library path, where `cargo xtask setup --cuda` links it";
    Err(CollectiveError::Io(text.to_owned()))
}

/// One rank's end of the group. Dropped, it ends the group.
#[derive(Debug)]
pub struct Nccl {
    rank: u32,
    world_size: u32,
    device: Device,
    gpu: Gpu,
    life: Arc<Life>,
    /// One call at a time; what a barrier reduces.
    token: Mutex<Tensor>,
}

impl Nccl {
    /// Joins as `rank` with the GPU `cuda:index` and waits until all ranks have.
    ///
    /// # Errors
    /// `Io` when the arguments do not fit or NCCL fails; `Timeout` when a rank is missing at the deadline; `Aborted` when
    /// another rank gave up.
    pub fn connect(
        rendezvous: &Rendezvous,
        index: usize,
        rank: u32,
        world_size: u32,
        deadline: Instant,
    ) -> Result<Self, CollectiveError> {
        let io = |text: String| Err(CollectiveError::Io(text));
        available()?;
        if world_size != rendezvous.world_size() {
            let expected = rendezvous.world_size();
            return io(format!("world size is {world_size}: the rendezvous is for {expected}"));
        }
        if rank >= world_size {
            return io(format!("rank is {rank}: below {world_size} is allowed"));
        }
        let device = Device::Cuda(index);
        let token = Tensor::f_zeros([1], (Kind::Int64, device));
        let token = token.map_err(|e| CollectiveError::Io(format!("cuda:{index}: {e}")))?;
        let gpu = Gpu::of(index)?;
        let communicator = Communicator::begin(rendezvous.id(), int(rank), int(world_size))?;
        let life = Life::new(communicator);
        let joined = Self { rank, world_size, device, gpu, life, token: Mutex::new(token) };
        let met = joined.follow("connect", deadline, || joined.launched());
        if let Err(error) = met {
            joined.end(&error);
            return Err(error);
        }
        Ok(joined)
    }

    /// One call: `launch` gives NCCL its work. Its failure is the group's.
    fn call(
        &self,
        op: &'static str,
        deadline: Instant,
        launch: impl FnOnce(&Communicator, &mut Tensor) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let mut token = match self.token.try_lock() {
            Ok(token) => token,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let error = self.overlap(op);
                self.end(&error);
                return Err(error);
            }
        };
        let run = || {
            self.life.check()?;
            self.gpu.enter()?;
            self.life.with(|communicator| launch(communicator, &mut token))?;
            self.follow(op, deadline, || self.launched())?;
            self.gpu.mark()?;
            self.follow(op, deadline, || self.gpu.passed())?;
            // A failed group lets the device go on: that it is done does not say that it did it.
            self.life.with(Communicator::progress).map(|_| ())
        };
        let result = run();
        if let Err(error) = &result {
            self.end(error);
        }
        result
    }

    fn launched(&self) -> Result<bool, CollectiveError> {
        Ok(self.life.with(Communicator::progress)? == Progress::Done)
    }

    /// Waits until `done`, the group has ended or failed, or the deadline has passed.
    fn follow(
        &self,
        op: &'static str,
        deadline: Instant,
        done: impl Fn() -> Result<bool, CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let started = Instant::now();
        let mut looked = started;
        while !done()? {
            self.life.check()?;
            let now = Instant::now();
            if now >= deadline {
                // NCCL does not say which of them it waits for.
                let missing = (0..self.world_size).filter(|rank| *rank != self.rank).collect();
                return Err(CollectiveError::Timeout { op, rank: self.rank, missing });
            }
            if now - looked >= LOOK {
                looked = now;
                self.life.with(Communicator::progress)?;
            }
            if now - started < SPIN {
                hint::spin_loop();
            } else {
                thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    /// Ends the group and waits, within bounds, until the device is free of it: what comes next on this rank's stream
    /// would wait behind its work.
    fn end(&self, error: &CollectiveError) {
        self.life.end(&format!("rank {}: {error}", self.rank));
        self.life.freed(Instant::now() + ABORT);
    }

    fn overlap(&self, op: &'static str) -> CollectiveError {
        CollectiveError::Mismatch {
            op,
            rank: self.rank,
            peer: self.rank,
            ours: op.to_owned(),
            theirs: "another call of this rank that still runs".to_owned(),
        }
    }
}

fn int(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

impl Collective for Nccl {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn world_size(&self) -> u32 {
        self.world_size
    }

    fn all_reduce(
        &self,
        tensor: &mut Tensor,
        op: ReduceOp,
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        let elements = Elements::of(tensor, self.device)?;
        self.call("all_reduce", deadline, |communicator, _| communicator.all_reduce(&elements, op))
    }

    fn broadcast(&self, tensor: &mut Tensor, root: u32, deadline: Instant) -> Result<(), CollectiveError> {
        let elements = Elements::of(tensor, self.device)?;
        if root >= self.world_size {
            let world = self.world_size;
            return Err(CollectiveError::BadTensor(format!("root is {root}: below {world} is allowed")));
        }
        self.call("broadcast", deadline, |communicator, _| communicator.broadcast(&elements, int(root)))
    }

    fn barrier(&self, deadline: Instant) -> Result<(), CollectiveError> {
        self.call("barrier", deadline, |communicator, token| {
            communicator.all_reduce(&Elements::of(token, self.device)?, ReduceOp::Sum)
        })
    }

    fn abort(&self, reason: &str) {
        self.life.end(&format!("rank {}: {reason}", self.rank));
    }

    fn freed(&self, by: Instant) -> bool {
        self.life.freed(by)
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        self.life.end(&format!("rank {} left the group", self.rank));
    }
}
