//! One end of a link whose slots are governed by words in shared memory, wherever their contents lie.

mod layout;
mod slot;

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use contract::tensor::{TensorKey, TensorSpec};
use contract::{Error, Generation, LinkSlot, Reason};
use tch::Tensor;

use self::slot::State;
use crate::contents::Contents;
use crate::{LatentLink, cuda_ipc, tensor};

pub(crate) use self::layout::{Handle, Layout, Shape, Side};

/// One end of the link, in one process.
#[derive(Debug)]
pub struct RingLink {
    contents: Contents,
    layout: Arc<Layout>,
    side: Side,
    /// Of this end's ring, by position.
    quarantined: Vec<bool>,
    /// Position in this end's ring after the last slot written, so that a slot rests as long as it can.
    next: usize,
}

impl RingLink {
    pub(crate) fn new(layout: Layout, contents: Contents, side: Side) -> Self {
        let quarantined = vec![false; layout.ring(side).len()];
        Self { contents, layout: Arc::new(layout), side, quarantined, next: 0 }
    }

    fn own(&self, position: usize) -> LinkSlot {
        LinkSlot(self.layout.ring(self.side).start + position as u32)
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

    /// What can be said of a spec without looking into its slot.
    fn check(&self, spec: &TensorSpec) -> Result<usize, Error> {
        let TensorSpec { slot, byte_len, byte_offset, .. } = spec;
        let key = spec.key.as_str();
        let ring = self.layout.ring(self.side.other());
        if !ring.contains(&slot.0) {
            let text =
                format!("{key} is in link slot {slot}: {} to {} are read here", ring.start, ring.end - 1);
            return Err(Error::new(Reason::BadField, text));
        }
        let bytes = tensor::bytes_of(&spec.shape, spec.dtype)?;
        if *byte_len != bytes {
            let text = format!("{key} has {byte_len} bytes: its shape {:?} takes {bytes}", spec.shape);
            return Err(Error::new(Reason::BadShape, text));
        }
        if *byte_offset != 0 || bytes > self.layout.slot_bytes() {
            let size = self.layout.slot_bytes();
            let text = format!("{key} has {bytes} bytes at {byte_offset}: at most {size} at 0 are in a slot");
            return Err(Error::new(Reason::BadField, text));
        }
        Ok(bytes as usize)
    }
}

impl LatentLink for RingLink {
    fn write(&mut self, key: TensorKey, tensor: &Tensor) -> Result<TensorSpec, Error> {
        if self.layout.closed(self.side.other()).load(Ordering::Acquire) != 0 {
            return Err(Error::new(Reason::Fenced, "the other end of the link is closed"));
        }
        let dense = tensor::dense(tensor, |tensor| self.contents.source(tensor))?;
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
        if let Err(error) = self.contents.put(&self.layout, slot, &dense, byte_len as usize) {
            self.layout.slot(slot).release(generation, &[State::Writing])?;
            return Err(error);
        }
        self.layout.slot(slot).end_write(generation)?;
        Ok(spec)
    }

    fn read(&mut self, spec: &TensorSpec) -> Result<Tensor, Error> {
        let len = self.check(spec)?;
        let tensor = tensor::empty(&spec.shape, spec.dtype, self.contents.device())?;
        let slot = self.layout.slot(spec.slot);
        let before = slot.begin_read(spec.generation)?;
        if !self.layout.has_label(spec) {
            slot.end_read(spec.generation, before)?;
            let text = format!(
                "{} {:?} is not what was written to slot {}",
                spec.key.as_str(),
                spec.shape,
                spec.slot
            );
            return Err(Error::new(Reason::BadShape, text));
        }
        if let Err(error) = self.contents.get(&self.layout, spec.slot, &tensor, len) {
            slot.end_read(spec.generation, before)?;
            return Err(error);
        }
        slot.end_read(spec.generation, State::Read)?;
        Ok(tensor)
    }

    fn release(&mut self, slot: LinkSlot, generation: Generation) -> Result<(), Error> {
        let held: &[State] = if self.layout.ring(self.side).contains(&slot.0) {
            &[State::Posted]
        } else if self.layout.ring(self.side.other()).contains(&slot.0) {
            &[State::Posted, State::Read]
        } else {
            return Err(Error::new(Reason::BadField, format!("there is no link slot {slot}")));
        };
        self.layout.slot(slot).release(generation, held)
    }

    fn holds(&self, slot: LinkSlot, generation: Generation) -> bool {
        let exists =
            [self.side, self.side.other()].iter().any(|side| self.layout.ring(*side).contains(&slot.0));
        exists && {
            let (now, state) = self.layout.slot(slot).now();
            now == generation && matches!(state, Some(State::Posted | State::Reading | State::Read))
        }
    }

    fn quarantine(&mut self, slots: &[LinkSlot]) {
        let start = self.layout.ring(self.side).start;
        for slot in slots {
            let position = slot.0.checked_sub(start).map(|position| position as usize);
            if let Some(quarantined) = position.and_then(|position| self.quarantined.get_mut(position)) {
                *quarantined = true;
            }
        }
    }

    fn unquarantine_all(&mut self) {
        for position in 0..self.quarantined.len() {
            if mem::take(&mut self.quarantined[position]) {
                let slot = self.layout.slot(self.own(position));
                // Free already, or in the very act of being read: then there is nothing to take back.
                let _ = slot.release(slot.now().0, &[State::Posted, State::Read]);
            }
        }
    }

    fn free_slots(&self) -> usize {
        let free = |position: &usize| {
            !self.quarantined[*position] && self.layout.slot(self.own(*position)).is_free()
        };
        (0..self.quarantined.len()).filter(free).count()
    }
}

impl Drop for RingLink {
    fn drop(&mut self) {
        self.layout.closed(self.side).store(1, Ordering::Release);
        let contents = mem::replace(&mut self.contents, Contents::InSegment);
        if let (Contents::OnDevice(memory), Side::Leader) = (contents, self.side) {
            cuda_ipc::retire(Arc::clone(&self.layout), memory);
        }
    }
}
