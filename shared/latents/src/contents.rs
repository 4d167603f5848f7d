//! Where the contents of a link's slots lie, and how they get in and out.

use contract::{Error, LinkSlot};
use tch::{Device, Tensor};

use crate::device_memory::DeviceMemory;
use crate::ring::Layout;

#[derive(Debug)]
pub(crate) enum Contents {
    /// Behind the headers, in shared memory.
    InSegment,
    /// In an order of their own, on a GPU.
    OnDevice(DeviceMemory),
}

impl Contents {
    /// Where tensors are that are copied out of a slot.
    pub(crate) fn device(&self) -> Device {
        match self {
            Self::InSegment => Device::Cpu,
            Self::OnDevice(memory) => memory.place(),
        }
    }

    /// Where a tensor has to be to be copied into a slot.
    pub(crate) fn source(&self, tensor: &Tensor) -> Device {
        match self {
            Self::InSegment => Device::Cpu,
            Self::OnDevice(_) => tensor.device(),
        }
    }

    /// Copies `len` bytes of a dense tensor on [`Self::source`] into a slot that is this end's alone; all of it is there on
    /// return.
    pub(crate) fn put(
        &self,
        layout: &Layout,
        slot: LinkSlot,
        tensor: &Tensor,
        len: usize,
    ) -> Result<(), Error> {
        match self {
            Self::InSegment => {
                let (from, to) = (tensor.data_ptr().cast::<u8>(), layout.content(slot, len));
                // SAFETY: `len` bytes of a dense tensor that lives until the end of this call, and of a slot that nobody
                // else touches; memory of torch and of the segment does not overlap.
                unsafe { from.copy_to_nonoverlapping(to, len) };
                Ok(())
            }
            Self::OnDevice(memory) => memory.put(layout.shape().content(slot, len), tensor, len),
        }
    }

    /// Copies `len` bytes of a slot that no writer takes meanwhile into a dense tensor on [`Self::device`]; all of it is
    /// there on return.
    pub(crate) fn get(
        &self,
        layout: &Layout,
        slot: LinkSlot,
        tensor: &Tensor,
        len: usize,
    ) -> Result<(), Error> {
        match self {
            Self::InSegment => {
                let (from, to) = (layout.content(slot, len), tensor.data_ptr().cast::<u8>());
                // SAFETY: as in `put`, the other way round.
                unsafe { from.copy_to_nonoverlapping(to, len) };
                Ok(())
            }
            Self::OnDevice(memory) => memory.get(layout.shape().content(slot, len), tensor, len),
        }
    }
}
