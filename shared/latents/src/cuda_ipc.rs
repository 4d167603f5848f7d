//! A link whose slots lie on the leader's GPU, which stage0 opens by CUDA's handle: for the same GPU, or a peer of it, on the
//! same host. What says who holds a slot lies in shared memory, as in [`crate::shm`].
//!
//! CUDA leaves open what becomes of a mapping whose memory is freed. So the leader keeps the memory of a link that it closes
//! until stage0 has closed its end too, or its process is gone.

use std::sync::{Arc, Mutex, PoisonError};

use contract::Error;
use contract::link::{LinkDescriptor, LinkKind};

use crate::contents::Contents;
use crate::device_memory::DeviceMemory;
use crate::ring::{Layout, RingLink, Shape, Side};
use crate::{NAME, Rings};

/// Of closed links whose other end is still open. It grows by one for each stage0 that stands still; whenever a link is
/// made or closed, what nobody has open any more is freed.
static KEPT: Mutex<Vec<(Arc<Layout>, DeviceMemory)>> = Mutex::new(Vec::new());

/// Leader: memory on the GPU `index`, and what HELLO's reply says of it.
///
/// # Errors
/// `bad_field` for a size that is not allowed; `internal` when the memory cannot be had.
pub fn create(index: usize, rings: &Rings) -> Result<(RingLink, LinkDescriptor), Error> {
    free_unshared();
    let Rings { prefix, slots_in, slots_out, slot_bytes, link_epoch, .. } = *rings;
    let shape = Shape::new(slots_in, slots_out, slot_bytes)?;
    let memory = DeviceMemory::allocate(index, shape.contents())?;
    let name = format!("{prefix}-{NAME}");
    let layout = Layout::create(LinkKind::CudaIpc, &name, shape, &memory.handle()?, link_epoch)?;
    let descriptor = layout.descriptor(link_epoch);
    Ok((RingLink::new(layout, Contents::OnDevice(memory), Side::Leader), descriptor))
}

/// stage0: maps the link for its GPU `index` and takes its name away.
///
/// # Errors
/// `not_ready` when the link is gone, was opened before, or lies on a GPU that this one does not reach; `bad_field` or
/// `unsupported_parameter` for a descriptor that is not one of cuda-ipc.
pub fn open(index: usize, descriptor: &LinkDescriptor) -> Result<RingLink, Error> {
    let layout = Layout::open(LinkKind::CudaIpc, descriptor)?;
    let memory = DeviceMemory::open(index, &layout.handle(), Shape::of(descriptor)?.contents())?;
    Ok(RingLink::new(layout, Contents::OnDevice(memory), Side::Stage0))
}

/// Frees the memory of a link that the leader closes, now or once nobody has it open.
pub(crate) fn retire(layout: Arc<Layout>, memory: DeviceMemory) {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).push((layout, memory));
    free_unshared();
}

fn free_unshared() {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).retain(|(layout, _)| layout.is_shared());
}
