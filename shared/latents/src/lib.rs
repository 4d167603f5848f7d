//! The bulk tensor path between stage0 and the mesh leader.
//!
//! A link has two rings of slots: stage0 writes `in` and the leader reads it, the leader writes `out` and stage0 reads
//! it. Each side has one end. A tensor is written into a free slot, named in a message by its [`TensorSpec`], read out
//! by the other end and given back. [`shm`] does this in shared memory of one host, [`cuda_ipc`] in memory of a GPU, [`nccl`]
//! between GPUs of two hosts, or of one where neither reaches the other's memory.

mod contents;
pub mod cuda_ipc;
mod device_memory;
pub mod far;
pub mod nccl;
mod ring;
pub mod shm;
mod tensor;

use contract::link::{LinkDescriptor, LinkKind};
use contract::tensor::{TensorKey, TensorSpec};
use contract::{Error, Generation, LinkSlot, Reason};
use tch::{Device, Tensor};

pub use self::ring::RingLink;

const NAME: &str = "link";

/// One end of a link. What cannot be done now is an error now. In memory that both ends share nothing waits; where they share
/// none ([`far`]), [`LatentLink::read`], and what is asked of the other end's ring, waits for the other end, never longer than
/// [`far::TRANSFER`].
///
/// Who holds a slot: its writer while it writes; then both ends, whoever takes it first, the writer back or the reader
/// to read; the reader from its first read on. Only a holder can give a slot back. A spec is good for the one write it
/// names: any later use of its slot, and any other link, has another generation, so a late or stale spec is an error
/// and never another picture.
pub trait LatentLink: Send {
    /// Copies `tensor` (f32 or bf16; on return all of it is in the slot) into a free slot of this end's ring.
    ///
    /// # Errors
    /// `slot_busy` when no slot is free; `payload_too_large` when it does not fit one; `bad_dtype` or `bad_shape` for
    /// what the link does not carry; `fenced` when the other end is closed.
    fn write(&mut self, key: TensorKey, tensor: &Tensor) -> Result<TensorSpec, Error>;

    /// Copies the tensor that `spec` names out of the other end's ring, and makes this end the slot's holder. May be
    /// repeated until the slot is given back.
    ///
    /// # Errors
    /// `stale_slot` when the slot no longer holds what `spec` names; `slot_busy` while it is being read already;
    /// `bad_field`, `bad_dtype` or `bad_shape` when `spec` is not what was written. The slot is then as before.
    fn read(&mut self, spec: &TensorSpec) -> Result<Tensor, Error>;

    /// Gives the slot back.
    ///
    /// # Errors
    /// `stale_slot` when it no longer holds that generation (so also the second time); `slot_busy` when the other end
    /// holds it; `bad_field` for a slot that does not exist.
    fn release(&mut self, slot: LinkSlot, generation: Generation) -> Result<(), Error>;

    /// Whether the slot still holds that generation, unread or read, so that its spec can be given to the reader again.
    fn holds(&self, slot: LinkSlot, generation: Generation) -> bool;

    /// After a time-out: this end does not write into the slots of its ring named here, given back or not, until
    /// [`LatentLink::unquarantine_all`]. Other slots are ignored.
    fn quarantine(&mut self, slots: &[LinkSlot]);

    /// Once the other end is known to be done with the call: takes all quarantined slots back, whoever held them. One
    /// in the very act of being read is left to its reader.
    fn unquarantine_all(&mut self);

    /// Whether tensors can go both ways.
    fn condition(&self) -> Condition {
        Condition::Open
    }

    /// What ends the link from another thread; `None` where nothing ever waits, so that dropping it does.
    fn closer(&self) -> Option<far::Closer> {
        None
    }

    /// How many writes would succeed now.
    fn free_slots(&self) -> usize;
}

/// What a leader makes a link of.
#[derive(Clone, Copy, Debug)]
pub struct Rings<'a> {
    /// Starts the name of what is shared: a-z, 0-9 and '-'.
    pub prefix: &'a str,
    pub slots_in: u32,
    pub slots_out: u32,
    /// Bytes that a slot holds.
    pub slot_bytes: u64,
    pub link_epoch: u64,
    /// `host:port` at which the leader of an nccl link waits for stage0. The other kinds have no use for it.
    pub bind: &'a str,
}

/// The leader's end of a new link, and what HELLO's reply says of it. `device` is the one that the leader computes on.
///
/// # Errors
/// `unsupported_parameter` for a kind that this build does not have or that does not go with the device; what the transport's
/// own `create` says.
pub fn create(
    kind: LinkKind,
    device: Device,
    rings: &Rings,
) -> Result<(Box<dyn LatentLink>, LinkDescriptor), Error> {
    // A leader that was killed before it handed its link over left it behind.
    let _ = remove_stale(rings.prefix);
    check(kind, device)?;
    Ok(match (kind, device) {
        (LinkKind::CudaIpc, Device::Cuda(index)) => boxed(cuda_ipc::create(index, rings)?),
        (LinkKind::Nccl, Device::Cuda(index)) => boxed(nccl::create(index, rings)?),
        _ => boxed(shm::create(rings)?),
    })
}

fn boxed<L: LatentLink + 'static>(
    (link, descriptor): (L, LinkDescriptor),
) -> (Box<dyn LatentLink>, LinkDescriptor) {
    (Box::new(link), descriptor)
}

/// Opens the end of stage0, which computes on `device`, on the link that HELLO's reply describes.
///
/// # Errors
/// As [`create`]; what the transport's own `open` says.
pub fn open(descriptor: &LinkDescriptor, device: Device) -> Result<Box<dyn LatentLink>, Error> {
    check(descriptor.kind, device)?;
    Ok(match (descriptor.kind, device) {
        (LinkKind::CudaIpc, Device::Cuda(index)) => Box::new(cuda_ipc::open(index, descriptor)?),
        (LinkKind::Nccl, Device::Cuda(index)) => Box::new(nccl::open(index, descriptor)?),
        _ => Box::new(shm::open(descriptor)?),
    })
}

/// Whether a process that computes on `device` can have a link of this kind.
///
/// # Errors
/// `unsupported_parameter`, saying what it can have.
pub fn check(kind: LinkKind, device: Device) -> Result<(), Error> {
    let (name, family) = (kind.as_str(), device::family(device));
    let refused = |why: &str, allowed: &str| {
        let text = format!("link kind {name}: {why}a process that computes on {family} has {allowed}");
        Err(Error::new(Reason::UnsupportedParameter, text))
    };
    match (kind, device) {
        (LinkKind::Shm, _) | (LinkKind::CudaIpc, Device::Cuda(_)) => Ok(()),
        (LinkKind::Nccl, Device::Cuda(_)) => match collectives::nccl::available() {
            Ok(()) => Ok(()),
            Err(error) => refused(&format!("{error}; without it "), "shm or cuda-ipc"),
        },
        _ => refused("", "shm"),
    }
}

/// What becomes of a link that is between two hosts; one in shared memory is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The ends are on the way to one another.
    Opening,
    Open,
    /// For good, and why: every call is this error.
    Failed(Error),
}

/// Takes away what a killed leader left under `prefix` and never handed over. A living leader's links stay. Returns
/// how many there were.
///
/// # Errors
/// `internal` when the names cannot be listed.
pub fn remove_stale(prefix: &str) -> Result<usize, Error> {
    segment::remove_orphans(&format!("{prefix}-{NAME}")).map_err(|error| {
        Error::new(Reason::Internal, "stale links cannot be listed").detail(error.to_string())
    })
}
