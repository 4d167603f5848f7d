//! What the writer of a ring does with its slots.

use std::mem;
use std::sync::Arc;

use contract::tensor::{TensorKey, TensorSpec};
use contract::{Error, Generation, LinkSlot, Reason};
use tch::{Device, Tensor};

use super::layout::{Layout, Side};
use super::slot::State;
use crate::tensor;

/// The ring that one end writes.
#[derive(Debug)]
pub(crate) struct Writer {
    layout: Arc<Layout>,
    side: Side,
    /// By position.
    quarantined: Vec<bool>,
    /// Position after the last slot written, so that a slot rests as long as it can.
    next: usize,
}

impl Writer {
    pub(crate) fn new(layout: Arc<Layout>, side: Side) -> Self {
        let quarantined = vec![false; layout.ring(side).len()];
        Self { layout, side, quarantined, next: 0 }
    }

    /// Takes a free slot and has `put` copy that many bytes of the tensor into it, dense and on the device that `source`
    /// wants it on.
    pub(crate) fn write(
        &mut self,
        key: TensorKey,
        tensor: &Tensor,
        source: impl Fn(&Tensor) -> Device,
        put: impl FnOnce(LinkSlot, &Tensor, usize) -> Result<(), Error>,
    ) -> Result<TensorSpec, Error> {
        let dense = tensor::dense(tensor, source)?;
        let (shape, dtype) = (dense.size(), tensor::dtype_of(dense.kind())?);
        let byte_len = tensor::bytes_of(&shape, dtype)?;
        let size = self.layout.slot_bytes();
        if byte_len > size {
            let text =
                format!("{} of shape {shape:?} has {byte_len} bytes: a slot holds {size}", key.as_str());
            return Err(Error::new(Reason::PayloadTooLarge, text));
        }
        let (slot, generation) = self.take()?;
        let spec = TensorSpec { key, dtype, shape, slot, byte_offset: 0, byte_len, generation };
        self.layout.set_label(&spec);
        if let Err(error) = put(slot, &dense, byte_len as usize) {
            self.layout.slot(slot).release(generation, &[State::Writing])?;
            return Err(error);
        }
        self.layout.slot(slot).end_write(generation)?;
        Ok(spec)
    }

    /// Takes the first free slot at or after `next`.
    fn take(&mut self) -> Result<(LinkSlot, Generation), Error> {
        let ring = self.quarantined.len();
        for position in (0..ring).map(|step| (self.next + step) % ring) {
            let slot = self.own(position);
            if !self.quarantined[position]
                && let Some(generation) = self.layout.slot(slot).begin_write()
            {
                self.next = (position + 1) % ring;
                return Ok((slot, generation));
            }
        }
        let quarantined = self.quarantined.iter().filter(|q| **q).count();
        Err(Error::new(
            Reason::SlotBusy,
            format!("none of {ring} link slots is free, {quarantined} in quarantine"),
        ))
    }

    fn own(&self, position: usize) -> LinkSlot {
        LinkSlot(self.layout.ring(self.side).start + position as u32)
    }

    pub(crate) fn has(&self, slot: LinkSlot) -> bool {
        self.layout.ring(self.side).contains(&slot.0)
    }

    /// Takes back what nobody has read.
    pub(crate) fn release(&self, slot: LinkSlot, generation: Generation) -> Result<(), Error> {
        self.layout.slot(slot).release(generation, &[State::Posted])
    }

    pub(crate) fn holds(&self, slot: LinkSlot, generation: Generation) -> bool {
        self.layout.slot(slot).holds(generation)
    }

    pub(crate) fn quarantine(&mut self, slots: &[LinkSlot]) {
        let start = self.layout.ring(self.side).start;
        for slot in slots {
            let position = slot.0.checked_sub(start).map(|position| position as usize);
            if let Some(quarantined) = position.and_then(|position| self.quarantined.get_mut(position)) {
                *quarantined = true;
            }
        }
    }

    pub(crate) fn unquarantine_all(&mut self) {
        for position in 0..self.quarantined.len() {
            if mem::take(&mut self.quarantined[position]) {
                let slot = self.layout.slot(self.own(position));
                // Free already, or in the very act of being read: then there is nothing to take back.
                let _ = slot.release(slot.now().0, &[State::Posted, State::Read]);
            }
        }
    }

    pub(crate) fn free_slots(&self) -> usize {
        let free = |position: &usize| {
            !self.quarantined[*position] && self.layout.slot(self.own(*position)).is_free()
        };
        (0..self.quarantined.len()).filter(free).count()
    }
}
