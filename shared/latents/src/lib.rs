//! The bulk tensor path between stage0 and the mesh leader.
//!
//! A link has two rings of slots: stage0 writes `in` and the leader reads it, the leader writes `out` and stage0 reads
//! it. Each side has one end. A tensor is written into a free slot, named in a message by its [`TensorSpec`], read out
//! by the other end and given back. [`shm`] does this in shared memory of one host.

pub mod shm;
mod tensor;

use contract::link::LinkDescriptor;
use contract::tensor::{TensorKey, TensorSpec};
use contract::{Error, Generation, LinkSlot};
use tch::Tensor;

/// One end of a link. Nothing here waits: what cannot be done now is an error now.
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

    /// How many writes would succeed now.
    fn free_slots(&self) -> usize;
}

/// Opens the end of stage0 on the link that HELLO's reply describes.
///
/// # Errors
/// `unsupported_parameter` for a kind of link this build does not have; what the transport's own `open` says.
pub fn open(descriptor: &LinkDescriptor) -> Result<Box<dyn LatentLink>, Error> {
    Ok(Box::new(shm::ShmLink::open(descriptor)?))
}
