//! Ranks with a GPU each, on one host or several, over NCCL.
//!
//! A call puts NCCL's work into torch's stream, after that of the tensor, and returns when the device has done it: so a
//! deadline ends a call whose peer is missing, and the tensor can be used at once. Nothing is copied through the host.
//!
//! NCCL compares neither operations nor sizes: where the lock step is broken, calls end in a timeout or an error of NCCL
//! instead of a `Mismatch`. Sums have the same bits on every rank, in an order of NCCL's choice.
//!
//! All-reduces can be part of a CUDA graph: then NCCL's work is captured with that of the tensors, and the launch of the graph is one
//! call. NCCL frees a group only once such graphs are gone: they go first.
//!
//! [`Nccl`] is the collective of a mesh. [`Pair`] is two ranks that send one another bytes.

mod communicator;
mod gpu;
mod group;
mod life;
mod pair;
mod rendezvous;

use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use cudarc::nccl::sys;
use tch::{Device, Kind, Tensor};

use self::communicator::Communicator;
use self::gpu::Stream;
use self::group::Group;
pub use self::pair::Pair;
pub use self::rendezvous::Rendezvous;
use crate::tensor::Elements;
use crate::{Collective, CollectiveError, ReduceOp};

/// An abort that takes longer has failed: the process has to go.
pub const ABORT: Duration = Duration::from_secs(2);

/// Whether NCCL can be opened in this process.
///
/// # Errors
/// `Io`, naming the library.
pub fn available() -> Result<(), CollectiveError> {
    // SAFETY: opening a library runs its initialisers; NCCL is made for that.
    if unsafe { sys::is_culib_present() } {
        // It stays open, so that the first who needs it does not wait for it.
        // SAFETY: as above.
        let _ = unsafe { sys::culib() };
        return Ok(());
    }
    let text =
        "libnccl.so cannot be opened: not on the library path, where `cargo xtask setup --cuda` links it";
    Err(CollectiveError::Io(text.to_owned()))
}

/// One rank's end of the group. Dropped, it ends the group.
#[derive(Debug)]
pub struct Nccl {
    device: Device,
    group: Group,
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
        available()?;
        let device = Device::Cuda(index);
        let token = Tensor::f_zeros([1], (Kind::Int64, device));
        let token = token.map_err(|e| CollectiveError::Io(format!("cuda:{index}: {e}")))?;
        let group = Group::join(rendezvous, index, Stream::of_torch(), rank, world_size, deadline)?;
        Ok(Self { device, group, token: Mutex::new(token) })
    }

    /// One call: `launch` gives NCCL its work. Its failure is the group's.
    fn call(
        &self,
        op: &'static str,
        deadline: Instant,
        launch: impl FnOnce(&Communicator, &mut Tensor) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let mut token = self.alone(op)?;
        self.group.call(op, deadline, |communicator| launch(communicator, &mut token))
    }

    /// Holds off every other call.
    fn alone(&self, op: &'static str) -> Result<MutexGuard<'_, Tensor>, CollectiveError> {
        match self.token.try_lock() {
            Ok(token) => Ok(token),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(self.group.overlap(op)),
        }
    }
}

impl Collective for Nccl {
    fn rank(&self) -> u32 {
        self.group.rank
    }

    fn world_size(&self) -> u32 {
        self.group.world_size
    }

    fn all_reduce(
        &self,
        tensor: &mut Tensor,
        op: ReduceOp,
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        let elements = Elements::of(tensor, self.device)?;
        self.call("all_reduce", deadline, |communicator, _| {
            communicator.all_reduce(communicator.stream(), &elements, op)
        })
    }

    fn broadcast(&self, tensor: &mut Tensor, root: u32, deadline: Instant) -> Result<(), CollectiveError> {
        let elements = Elements::of(tensor, self.device)?;
        let world = self.group.world_size;
        if root >= world {
            return Err(CollectiveError::BadTensor(format!("root is {root}: below {world} is allowed")));
        }
        self.call("broadcast", deadline, |communicator, _| {
            communicator.broadcast(&elements, root.cast_signed())
        })
    }

    fn barrier(&self, deadline: Instant) -> Result<(), CollectiveError> {
        self.call("barrier", deadline, |communicator, token| {
            let elements = Elements::of(token, self.device)?;
            communicator.all_reduce(communicator.stream(), &elements, ReduceOp::Sum)
        })
    }

    fn records(&self) -> bool {
        true
    }

    fn record_all_reduce(
        &self,
        tensor: &mut Tensor,
        op: ReduceOp,
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        let elements = Elements::of(tensor, self.device)?;
        let stream = torch_extra::current_stream(self.device);
        let stream = stream.map_err(|error| CollectiveError::Io(error.to_string()))?;
        let _alone = self.alone("all_reduce")?;
        self.group.record("all_reduce", deadline, |communicator| {
            communicator.all_reduce(stream.0.cast(), &elements, op)
        })
    }

    fn replay(
        &self,
        deadline: Instant,
        launch: &mut dyn FnMut() -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        self.call("replay", deadline, |_, _| launch())
    }

    fn abort(&self, reason: &str) {
        self.group.abort(reason);
    }

    fn freed(&self, by: Instant) -> bool {
        self.group.freed(by)
    }
}
