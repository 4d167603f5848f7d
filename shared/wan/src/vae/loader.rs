//! Reads the weights of one network under a growing name prefix and numbers its cache slots.

use super::cache::SlotCounter;
use super::fused::Fused;
use crate::weights::{TensorSource, WeightsError};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

pub(super) struct Loader<'a> {
    source: &'a dyn TensorSource,
    device: Device,
    kind: Kind,
    fused: Option<Arc<Fused>>,
    slots: SlotCounter,
}

impl<'a> Loader<'a> {
    /// `fused`: the kernels, where there are some for this device and dtype.
    pub(super) fn new(
        source: &'a dyn TensorSource,
        device: Device,
        kind: Kind,
        fused: Option<Arc<Fused>>,
    ) -> Self {
        Self { source, device, kind, fused, slots: SlotCounter::default() }
    }

    /// The tensor `name`, of exactly `shape`, on the device of the network and in its dtype.
    pub(super) fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor, WeightsError> {
        Ok(self.source.get(name, shape)?.to_device(self.device).to_kind(self.kind))
    }

    /// The kernels, if pixels of so many channels are for them.
    pub(super) fn fused(&self, channels: i64) -> Option<Arc<Fused>> {
        self.fused.clone().filter(|_| Fused::fits(channels))
    }

    /// Channels that a convolution works with where a tensor has `channels`: cuDNN's kernels for channels last want eights.
    pub(super) fn stored(&self, channels: i64) -> i64 {
        if self.device.is_cuda() {
            channels.cast_unsigned().next_multiple_of(8).cast_signed()
        } else {
            channels
        }
    }

    /// The next free cache slot of the network.
    pub(super) fn slot(&mut self) -> usize {
        self.slots.next()
    }
}
