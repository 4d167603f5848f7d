//! One end of a link whose slots are governed by words in shared memory, wherever their contents lie.

mod layout;
mod reader;
mod slot;
mod writer;

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use contract::tensor::{TensorKey, TensorSpec};
use contract::{Error, Generation, LinkSlot, Reason};
use tch::Tensor;

use crate::contents::Contents;
use crate::{LatentLink, cuda_ipc, tensor};

pub(crate) use self::layout::{Handle, Layout, Shape, Side};
pub(crate) use self::reader::Reader;
pub(crate) use self::writer::Writer;

/// One end of the link, in one process.
#[derive(Debug)]
pub struct RingLink {
    contents: Contents,
    layout: Arc<Layout>,
    side: Side,
    writer: Writer,
    reader: Reader,
}

impl RingLink {
    pub(crate) fn new(layout: Layout, contents: Contents, side: Side) -> Self {
        let layout = Arc::new(layout);
        let writer = Writer::new(Arc::clone(&layout), side);
        let reader = Reader::new(Arc::clone(&layout), side.other());
        Self { contents, layout, side, writer, reader }
    }
}

impl LatentLink for RingLink {
    fn write(&mut self, key: TensorKey, tensor: &Tensor) -> Result<TensorSpec, Error> {
        if self.layout.closed(self.side.other()).load(Ordering::Acquire) != 0 {
            return Err(Error::new(Reason::Fenced, "the other end of the link is closed"));
        }
        let (contents, layout) = (&self.contents, &self.layout);
        let put = |slot, tensor: &Tensor, len| contents.put(layout, slot, tensor, len);
        self.writer.write(key, tensor, |tensor| contents.source(tensor), put)
    }

    fn read(&mut self, spec: &TensorSpec) -> Result<Tensor, Error> {
        let len = self.reader.check(spec)?;
        let tensor = tensor::empty(&spec.shape, spec.dtype, self.contents.device())?;
        let reading = self.reader.begin(spec)?;
        if let Err(error) = self.contents.get(&self.layout, spec.slot, &tensor, len) {
            self.reader.give_up(reading)?;
            return Err(error);
        }
        self.reader.end(reading)?;
        Ok(tensor)
    }

    fn release(&mut self, slot: LinkSlot, generation: Generation) -> Result<(), Error> {
        if self.writer.has(slot) {
            self.writer.release(slot, generation)
        } else {
            self.reader.release(slot, generation)
        }
    }

    fn holds(&self, slot: LinkSlot, generation: Generation) -> bool {
        if self.writer.has(slot) {
            self.writer.holds(slot, generation)
        } else {
            self.reader.holds(slot, generation)
        }
    }

    fn quarantine(&mut self, slots: &[LinkSlot]) {
        self.writer.quarantine(slots);
    }

    fn unquarantine_all(&mut self) {
        self.writer.unquarantine_all();
    }

    fn free_slots(&self) -> usize {
        self.writer.free_slots()
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
