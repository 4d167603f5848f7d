//! Convolutions. Frames are batched throughout: `[T, C, H, W]` for one clip (the batch of the public functions is 1).

use super::cache::{Slot, Slots};
use super::loader::Loader;
use crate::weights::WeightsError;
use tch::{Device, Tensor};

/// A convolution within each frame.
#[derive(Debug)]
pub(super) struct FrameConv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl FrameConv {
    /// Square kernel, symmetric zero padding that keeps the size.
    pub(super) fn load(
        l: &Loader,
        name: &str,
        cin: i64,
        cout: i64,
        kernel: i64,
    ) -> Result<Self, WeightsError> {
        Ok(Self {
            weight: l.tensor(&format!("{name}.weight"), &[cout, cin, kernel, kernel])?,
            bias: l.tensor(&format!("{name}.bias"), &[cout])?,
            stride: 1,
            padding: kernel / 2,
        })
    }

    /// 3x3 with stride 2 and no padding: the caller pads.
    pub(super) fn load_strided(l: &Loader, name: &str, channels: i64) -> Result<Self, WeightsError> {
        let conv = Self::load(l, name, channels, channels, 3)?;
        Ok(Self { stride: 2, padding: 0, ..conv })
    }

    /// A 1x1x1 convolution, which the checkpoint stores with a temporal axis.
    pub(super) fn load_pointwise(l: &Loader, name: &str, cin: i64, cout: i64) -> Result<Self, WeightsError> {
        Ok(Self {
            weight: l.tensor(&format!("{name}.weight"), &[cout, cin, 1, 1, 1])?.squeeze_dim(2),
            bias: l.tensor(&format!("{name}.bias"), &[cout])?,
            stride: 1,
            padding: 0,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let (s, p) = (self.stride, self.padding);
        x.conv2d(&self.weight, Some(&self.bias), [s, s], [p, p], [1, 1], 1)
    }
}

/// How the three taps in time are computed.
#[derive(Debug)]
enum Taps {
    /// As input channels of one 2-D convolution, weight `[O, 3C, k, k]`: on a CPU five times as fast as a 3-D one.
    Folded(Tensor),
    /// As a 3-D convolution, weight `[O, C, 3, k, k]`: on a GPU twice as fast as the folded one.
    Volume(Tensor),
}

/// A convolution with kernel 3 in time that looks at the present frame and the two before it.
#[derive(Debug)]
pub(super) struct CausalConv {
    taps: Taps,
    /// The tap of the present frame alone, `[O, C, k, k]`.
    present: Tensor,
    bias: Tensor,
    padding: i64,
    slot: usize,
}

impl CausalConv {
    /// `kernel` is the spatial one: 3 with padding, or 1.
    pub(super) fn load(
        l: &mut Loader,
        name: &str,
        cin: i64,
        cout: i64,
        kernel: i64,
    ) -> Result<Self, WeightsError> {
        let weight = l.tensor(&format!("{name}.weight"), &[cout, cin, 3, kernel, kernel])?;
        let present = channels_last(&weight.select(2, 2));
        let taps = if l.device() == Device::Cpu || kernel == 1 {
            Taps::Folded(fold_taps(&weight))
        } else {
            Taps::Volume(weight)
        };
        let bias = l.tensor(&format!("{name}.bias"), &[cout])?;
        Ok(Self { taps, present, bias, padding: kernel / 2, slot: l.slot() })
    }

    /// `[T, C, H, W]` -> `[T, O, H, W]`; the context comes from the stream, and the last two input frames go to it.
    pub(super) fn forward(&self, x: &Tensor, slots: &mut Slots) -> Tensor {
        let p = self.padding;
        let frames = x.size()[0];
        let context = match slots.take(self.slot) {
            Slot::Frames(context) => Some(context),
            Slot::Empty | Slot::Passed => None,
        };
        if context.is_none() && frames == 1 {
            // Both earlier taps would see zeros.
            slots.put_last(self.slot, x, 1);
            return channels_last(x)
                .conv2d(&self.present, Some(&self.bias), [1, 1], [p, p], [1, 1], 1)
                .contiguous();
        }
        let known = context.as_ref().map_or(0, |c| c.size()[0]);
        let mut parts = Vec::with_capacity(3);
        let size = x.size();
        if known < 2 {
            parts.push(Tensor::zeros([2 - known, size[1], size[2], size[3]], (x.kind(), x.device())));
        }
        parts.extend(context);
        parts.push(x.shallow_clone());
        let padded = Tensor::cat(&parts, 0);
        slots.put_last(self.slot, &padded, 2);
        match &self.taps {
            Taps::Folded(weight) => fold_frames(&padded, frames, 1)
                .conv2d(weight, Some(&self.bias), [1, 1], [p, p], [1, 1], 1)
                .contiguous(),
            Taps::Volume(weight) => padded
                .transpose(0, 1)
                .unsqueeze(0)
                .conv3d(weight, Some(&self.bias), [1, 1, 1], [0, p, p], [1, 1, 1], 1)
                .squeeze_dim(0)
                .transpose(0, 1),
        }
    }
}

/// Halves time: kernel 3, stride 2, no padding, no spatial extent.
#[derive(Debug)]
pub(super) struct TemporalDown {
    weight: Tensor,
    bias: Tensor,
    slot: usize,
}

impl TemporalDown {
    pub(super) fn load(l: &mut Loader, name: &str, channels: i64) -> Result<Self, WeightsError> {
        Ok(Self {
            weight: fold_taps(&l.tensor(&format!("{name}.weight"), &[channels, channels, 3, 1, 1])?),
            bias: l.tensor(&format!("{name}.bias"), &[channels])?,
            slot: l.slot(),
        })
    }

    /// The first call of a stream passes its frames through. Later ones convolve the last frame of the call before
    /// with the new ones: `T` (at least 2) become `T / 2`; an odd one out is only remembered.
    pub(super) fn forward(&self, x: Tensor, slots: &mut Slots) -> Tensor {
        let previous = slots.take(self.slot);
        slots.put_last(self.slot, &x, 1);
        match previous {
            Slot::Empty | Slot::Passed => x,
            Slot::Frames(last) => {
                let padded = Tensor::cat(&[last, x], 0);
                let frames = (padded.size()[0] - 3) / 2 + 1;
                fold_frames(&padded, frames, 2)
                    .conv2d(&self.weight, Some(&self.bias), [1, 1], [0, 0], [1, 1], 1)
                    .contiguous()
            }
        }
    }
}

/// Doubles time: kernel 3, causal, to twice the channels, which become two consecutive frames.
#[derive(Debug)]
pub(super) struct TemporalUp {
    conv: CausalConv,
}

impl TemporalUp {
    pub(super) fn load(l: &mut Loader, name: &str, channels: i64) -> Result<Self, WeightsError> {
        Ok(Self { conv: CausalConv::load(l, name, channels, 2 * channels, 1)? })
    }

    /// The first call of a stream passes its frame through and remembers only that it did: the second call has zeros as
    /// context, not the first frame.
    pub(super) fn forward(&self, x: Tensor, slots: &mut Slots) -> Tensor {
        match slots.take(self.conv.slot) {
            Slot::Empty => {
                slots.put(self.conv.slot, Slot::Passed);
                return x;
            }
            known => slots.put(self.conv.slot, known),
        }
        let size = x.size();
        self.conv.forward(&x, slots).reshape([2 * size[0], size[1], size[2], size[3]])
    }
}

/// `[O, C, 3, k, k]` -> `[O, 3C, k, k]`, channels of the oldest tap first, stored channels last.
fn fold_taps(weight: &Tensor) -> Tensor {
    let s = weight.size();
    channels_last(&weight.transpose(1, 2).reshape([s[0], 3 * s[1], s[3], s[4]]))
}

/// `[T, C, H, W]` -> `[frames, 3C, H, W]`, stored channels last: output frame `i` holds input frames `i * stride` to
/// `i * stride + 2`.
fn fold_frames(x: &Tensor, frames: i64, stride: i64) -> Tensor {
    let x = x.permute([0, 2, 3, 1]).contiguous();
    let tap = |k: i64| x.slice(0, k, k + stride * (frames - 1) + 1, stride);
    Tensor::cat(&[tap(0), tap(1), tap(2)], 3).permute([0, 3, 1, 2])
}

/// The same values with the channels of a pixel side by side: on a CPU a convolution of few channels is twice as fast so.
fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}
