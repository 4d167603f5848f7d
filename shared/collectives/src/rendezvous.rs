use std::sync::Arc;
use std::time::Instant;

use tch::Device;

use crate::loopback::{self, Loopback};
use crate::nccl::{self, Nccl};
use crate::{Collective, CollectiveError};

/// Whether a rank has its place in a rendezvous for `expected` ranks.
///
/// # Errors
/// `Io` when it has not.
pub(crate) fn check_place(rank: u32, world_size: u32, expected: u32) -> Result<(), CollectiveError> {
    if world_size != expected {
        let text = format!("world size is {world_size}: the rendezvous is for {expected}");
        return Err(CollectiveError::Io(text));
    }
    if rank >= world_size {
        return Err(CollectiveError::Io(format!("rank is {rank}: below {world_size} is allowed")));
    }
    Ok(())
}

/// Where the ranks of one group meet, and over what: NCCL between GPUs, shared memory between CPUs. Made by one process,
/// handed to the others as opaque bytes.
#[derive(Debug)]
pub enum Rendezvous {
    Loopback(loopback::Rendezvous),
    Nccl(nccl::Rendezvous),
}

impl Rendezvous {
    /// For `world_size` ranks whose tensors live on devices of the same kind as `device`.
    ///
    /// # Errors
    /// `Io` when the transport cannot be had, or not for that many ranks.
    pub fn create(device: Device, world_size: u32) -> Result<Self, CollectiveError> {
        match device {
            Device::Cuda(_) => nccl::Rendezvous::create(world_size).map(Self::Nccl),
            _ => loopback::Rendezvous::create(world_size).map(Self::Loopback),
        }
    }

    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Loopback(rendezvous) => rendezvous.to_bytes(),
            Self::Nccl(rendezvous) => rendezvous.to_bytes(),
        }
    }

    /// # Errors
    /// `Io` when the bytes are not those of [`Rendezvous::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CollectiveError> {
        if nccl::Rendezvous::is_meant_by(bytes) {
            nccl::Rendezvous::from_bytes(bytes).map(Self::Nccl)
        } else {
            loopback::Rendezvous::from_bytes(bytes).map(Self::Loopback)
        }
    }

    /// Joins as `rank` and waits until all ranks have. `device` is where this rank's tensors will live.
    ///
    /// # Errors
    /// `Io` when the arguments do not fit, the device among them; `Timeout` when a rank is missing at the deadline;
    /// `Aborted` when another rank gave up.
    pub fn connect(
        &self,
        device: Device,
        rank: u32,
        world_size: u32,
        deadline: Instant,
    ) -> Result<Arc<dyn Collective>, CollectiveError> {
        match (self, device) {
            (Self::Loopback(rendezvous), Device::Cpu) => {
                Ok(Arc::new(Loopback::connect(rendezvous, rank, world_size, deadline)?))
            }
            (Self::Nccl(rendezvous), Device::Cuda(index)) => {
                Ok(Arc::new(Nccl::connect(rendezvous, index, rank, world_size, deadline)?))
            }
            (Self::Loopback(_), _) => {
                Err(CollectiveError::Io(format!("this rank is on {device:?}: the rendezvous is for CPUs")))
            }
            (Self::Nccl(_), _) => {
                Err(CollectiveError::Io(format!("this rank is on {device:?}: the rendezvous is for GPUs")))
            }
        }
    }
}
