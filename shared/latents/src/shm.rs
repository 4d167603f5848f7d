//! A link in shared memory of one host. The leader creates it at HELLO, stage0 opens it once; from then on it has no
//! name and is gone with the last of the two. A new lease or mesh epoch gets a new one, so whoever still writes into
//! an older one writes into memory that nobody reads.

use contract::Error;
use contract::link::{LinkDescriptor, LinkKind};

use crate::contents::Contents;
use crate::ring::{Layout, RingLink, Shape, Side};
use crate::{NAME, Rings};

/// Leader: the memory, and what HELLO's reply says of it.
///
/// # Errors
/// `bad_field` for a size that is not allowed; `internal` when the memory cannot be had.
pub fn create(rings: &Rings) -> Result<(RingLink, LinkDescriptor), Error> {
    let Rings { prefix, slots_in, slots_out, slot_bytes, link_epoch, .. } = *rings;
    let shape = Shape::new(slots_in, slots_out, slot_bytes)?;
    let layout = Layout::create(LinkKind::Shm, &format!("{prefix}-{NAME}"), shape, &[0; 64], link_epoch)?;
    let descriptor = layout.descriptor(link_epoch);
    Ok((RingLink::new(layout, Contents::InSegment, Side::Leader), descriptor))
}

/// stage0: maps the link and takes its name away.
///
/// # Errors
/// `not_ready` when the link is gone or was opened before; `bad_field` or `unsupported_parameter` for a descriptor
/// that is not one of shm.
pub fn open(descriptor: &LinkDescriptor) -> Result<RingLink, Error> {
    let layout = Layout::open(LinkKind::Shm, descriptor)?;
    Ok(RingLink::new(layout, Contents::InSegment, Side::Stage0))
}
