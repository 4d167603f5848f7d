//! Reads the weights of one network under a growing name prefix and numbers its cache slots.

use super::cache::SlotCounter;
use crate::weights::{TensorSource, WeightsError};
use tch::{Device, Kind, Tensor};

pub(super) struct Loader<'a> {
    source: &'a dyn TensorSource,
    device: Device,
    kind: Kind,
    slots: SlotCounter,
}

impl<'a> Loader<'a> {
    pub(super) fn new(source: &'a dyn TensorSource, device: Device, kind: Kind) -> Self {
        Self { source, device, kind, slots: SlotCounter::default() }
    }

    /// The tensor `name`, of exactly `shape`, on the device of the network and in its dtype.
    pub(super) fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor, WeightsError> {
        Ok(self.source.get(name, shape)?.to_device(self.device).to_kind(self.kind))
    }

    pub(super) fn device(&self) -> Device {
        self.device
    }

    /// The next free cache slot of the network.
    pub(super) fn slot(&mut self) -> usize {
        self.slots.next()
    }
}
