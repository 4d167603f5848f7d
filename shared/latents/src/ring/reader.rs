//! What the reader of a ring does with its slots.

use std::sync::Arc;

use contract::tensor::TensorSpec;
use contract::{Error, Generation, LinkSlot, Reason};

use super::layout::{Layout, Side};
use super::slot::State;
use crate::tensor;

/// The ring that `writer` writes, for the end that reads it.
#[derive(Debug)]
pub(crate) struct Reader {
    layout: Arc<Layout>,
    writer: Side,
}

/// A slot that no writer can have until [`Reader::end`] or [`Reader::give_up`].
#[must_use]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    slot: LinkSlot,
    generation: Generation,
    before: State,
}

impl Reader {
    pub(crate) fn new(layout: Arc<Layout>, writer: Side) -> Self {
        Self { layout, writer }
    }

    /// What can be said of a spec without looking into its slot; how many bytes it is of.
    pub(crate) fn check(&self, spec: &TensorSpec) -> Result<usize, Error> {
        let TensorSpec { slot, byte_len, byte_offset, .. } = spec;
        let key = spec.key.as_str();
        let ring = self.layout.ring(self.writer);
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

    /// Holds the slot of a spec that was checked, if it is what was written there.
    pub(crate) fn begin(&self, spec: &TensorSpec) -> Result<Reading, Error> {
        let (slot, generation) = (spec.slot, spec.generation);
        let before = self.layout.slot(slot).begin_read(generation)?;
        let reading = Reading { slot, generation, before };
        if !self.layout.has_label(spec) {
            self.give_up(reading)?;
            let (key, shape) = (spec.key.as_str(), &spec.shape);
            let text = format!("{key} {shape:?} is not what was written to slot {slot}");
            return Err(Error::new(Reason::BadShape, text));
        }
        Ok(reading)
    }

    /// The bytes are copied out. Fails when the slot is not as [`Self::begin`] left it, so that they are not to be used.
    pub(crate) fn end(&self, reading: Reading) -> Result<(), Error> {
        self.layout.slot(reading.slot).end_read(reading.generation, State::Read)
    }

    /// They are not: the slot is as before.
    pub(crate) fn give_up(&self, reading: Reading) -> Result<(), Error> {
        self.layout.slot(reading.slot).end_read(reading.generation, reading.before)
    }

    pub(crate) fn has(&self, slot: LinkSlot) -> bool {
        self.layout.ring(self.writer).contains(&slot.0)
    }

    pub(crate) fn release(&self, slot: LinkSlot, generation: Generation) -> Result<(), Error> {
        if !self.has(slot) {
            return Err(Error::new(Reason::BadField, format!("there is no link slot {slot}")));
        }
        self.layout.slot(slot).release(generation, &[State::Posted, State::Read])
    }

    pub(crate) fn holds(&self, slot: LinkSlot, generation: Generation) -> bool {
        self.has(slot) && self.layout.slot(slot).holds(generation)
    }
}
