//! Convolutions. Activations are `[T, H, W, C]` of one clip (the batch of the public functions is 1) and contiguous, so the
//! channels of a pixel lie side by side; the library sees them through views, and its results are laid out as its inputs.

use super::cache::{Slot, Slots};
use super::loader::Loader;
use crate::weights::WeightsError;
use tch::{Device, Kind, Tensor};

/// Frames before the present one that a convolution in time sees.
const CONTEXT: i64 = 2;

/// A 1x1x1 convolution: a product with each pixel.
#[derive(Debug)]
pub(super) struct Pointwise {
    /// `[O, C]`
    weight: Tensor,
    bias: Tensor,
}

impl Pointwise {
    /// One that the checkpoint stores within frames, `[O, C, 1, 1]`.
    pub(super) fn load(l: &Loader, name: &str, cin: i64, cout: i64) -> Result<Self, WeightsError> {
        Self::load_as(l, name, &[cout, cin, 1, 1])
    }

    /// One that the checkpoint stores with a temporal axis, `[O, C, 1, 1, 1]`.
    pub(super) fn load_volume(l: &Loader, name: &str, cin: i64, cout: i64) -> Result<Self, WeightsError> {
        Self::load_as(l, name, &[cout, cin, 1, 1, 1])
    }

    fn load_as(l: &Loader, name: &str, shape: &[i64]) -> Result<Self, WeightsError> {
        Ok(Self {
            weight: l.tensor(&format!("{name}.weight"), shape)?.reshape(&shape[..2]),
            bias: l.tensor(&format!("{name}.bias"), &shape[..1])?,
        })
    }

    /// `[.., C]` -> `[.., O]`
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }
}

/// A 3x3 convolution within each frame.
#[derive(Debug)]
pub(super) struct FrameConv {
    /// `[O, C, 3, 3]`, stored channels last.
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl FrameConv {
    /// Zero padding that keeps the size.
    pub(super) fn load(l: &Loader, name: &str, cin: i64, cout: i64) -> Result<Self, WeightsError> {
        Ok(Self {
            weight: channels_last(&l.tensor(&format!("{name}.weight"), &[cout, cin, 3, 3])?),
            bias: l.tensor(&format!("{name}.bias"), &[cout])?,
            stride: 1,
            padding: 1,
        })
    }

    /// Stride 2 and no padding: the caller pads.
    pub(super) fn load_strided(l: &Loader, name: &str, channels: i64) -> Result<Self, WeightsError> {
        Ok(Self { stride: 2, padding: 0, ..Self::load(l, name, channels, channels)? })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        within_frames(x, &self.weight, Some(&self.bias), self.stride, self.padding)
    }
}

/// A 3x3x3 convolution that looks at the present frame and the two before it.
#[derive(Debug)]
pub(super) struct CausalConv {
    /// `[O, C, 3, 3, 3]`, stored channels last; zeros where it works with more channels than it has.
    weight: Tensor,
    /// The tap of the present frame alone, `[O, C, 3, 3]`, stored channels last.
    present: Tensor,
    /// None where others add it.
    bias: Option<Tensor>,
    /// Channels that it has.
    inputs: i64,
    outputs: i64,
    slot: usize,
}

/// The frames that a [`CausalConv`] is given, behind those that it has seen: what makes them writes them to their place.
#[derive(Debug)]
pub(super) struct Input {
    /// `[CONTEXT + T, H, W, C]`, or `[1, H, W, C]` of a single frame before which there was nothing.
    padded: Tensor,
    frames: i64,
    channels: i64,
}

impl Input {
    /// Where the frames go, `[T, H, W, C]`.
    pub(super) fn frames(&self) -> Tensor {
        let last = self.padded.narrow(0, self.padded.size()[0] - self.frames, self.frames);
        last.narrow(3, 0, self.channels)
    }
}

impl CausalConv {
    pub(super) fn load(l: &mut Loader, name: &str, cin: i64, cout: i64) -> Result<Self, WeightsError> {
        let (more_inputs, more_outputs) = (l.stored(cin) - cin, l.stored(cout) - cout);
        // A pair for each dimension, the last one first.
        let mut padding = [0; 10];
        (padding[7], padding[9]) = (more_inputs, more_outputs);
        let weight = l.tensor(&format!("{name}.weight"), &[cout, cin, 3, 3, 3])?.constant_pad_nd(padding);
        Ok(Self {
            present: channels_last(&weight.select(2, 2)),
            weight: channels_last(&weight),
            bias: Some(l.tensor(&format!("{name}.bias"), &[cout])?.constant_pad_nd([0, more_outputs])),
            inputs: cin,
            outputs: cout,
            slot: l.slot(),
        })
    }

    /// Its bias `[O]`, which from now on is not in its results.
    pub(super) fn take_bias(&mut self) -> Option<Tensor> {
        self.bias.take()
    }

    /// Room for as many frames as `x` `[T, H, W, C]` has, with their context from the stream.
    pub(super) fn room_for(&self, x: &Tensor, slots: &Slots) -> Input {
        let ([frames, height, width, _], context) = (dimensions(x), slots.frames(self.slot));
        let before = if context.is_none() && frames == 1 { 0 } else { CONTEXT };
        let stored = self.weight.size()[1];
        let mut padded = Tensor::empty([before + frames, height, width, stored], (x.kind(), x.device()));
        if stored > self.inputs {
            let _ = padded.zero_();
        }
        let known = context.map_or(0, |context| context.size()[0]);
        if before > known {
            let _ = padded.narrow(0, 0, before - known).zero_();
        }
        if let Some(context) = context {
            padded.narrow(0, before - known, known).copy_(context);
        }
        Input { padded, frames, channels: self.inputs }
    }

    /// -> `[T, H, W, O]`. The last frames of the input go to the stream.
    pub(super) fn forward(&self, input: &Input, slots: &mut Slots) -> Tensor {
        let Input { padded, frames, .. } = input;
        slots.put_last(self.slot, padded, CONTEXT);
        let y = if padded.size()[0] == *frames {
            // Both earlier taps would see zeros.
            within_frames(padded, &self.present, self.bias.as_ref(), 1, 1)
        } else {
            over_frames(padded, &self.weight, self.bias.as_ref())
        };
        y.narrow(3, 0, self.outputs).contiguous()
    }

    /// The same of frames `[T, H, W, C]` that lie elsewhere.
    pub(super) fn forward_copy(&self, x: &Tensor, slots: &mut Slots) -> Tensor {
        let input = self.room_for(x, slots);
        input.frames().copy_(x);
        self.forward(&input, slots)
    }
}

/// A convolution in time alone, kernel 3.
#[derive(Debug)]
struct TimeConv {
    /// `[O, 3C]`, channels of the oldest tap first.
    weight: Tensor,
    bias: Tensor,
}

impl TimeConv {
    fn load(l: &Loader, name: &str, cin: i64, cout: i64) -> Result<Self, WeightsError> {
        let weight = l.tensor(&format!("{name}.weight"), &[cout, cin, 3, 1, 1])?;
        let weight = weight.transpose(1, 2).reshape([cout, 3 * cin]);
        Ok(Self { weight, bias: l.tensor(&format!("{name}.bias"), &[cout])? })
    }

    /// `[T, H, W, C]` -> `[(T - 3) / stride + 1, H, W, O]`: output frame `i` sees input frames `i * stride` to
    /// `i * stride + 2`.
    fn forward(&self, x: &Tensor, stride: i64) -> Tensor {
        let span = (x.size()[0] - 3) / stride * stride + 1;
        let taps = [0, 1, 2].map(|tap| x.slice(0, tap, tap + span, stride));
        Tensor::cat(&taps, 3).linear(&self.weight, Some(&self.bias))
    }
}

/// Halves time: stride 2, no padding.
#[derive(Debug)]
pub(super) struct TemporalDown {
    conv: TimeConv,
    slot: usize,
}

impl TemporalDown {
    pub(super) fn load(l: &mut Loader, name: &str, channels: i64) -> Result<Self, WeightsError> {
        Ok(Self { conv: TimeConv::load(l, name, channels, channels)?, slot: l.slot() })
    }

    /// The first call of a stream passes its frames through. Later ones convolve the last frame of the call before
    /// with the new ones: `T` (at least 2) become `T / 2`; an odd one out is only remembered.
    pub(super) fn forward(&self, x: Tensor, slots: &mut Slots) -> Tensor {
        let previous = slots.take(self.slot);
        slots.put_last(self.slot, &x, 1);
        match previous {
            Slot::Empty | Slot::Passed => x,
            Slot::Frames(last) => self.conv.forward(&Tensor::cat(&[last, x], 0), 2),
        }
    }
}

/// Doubles time: causal, to twice the channels, which become two consecutive frames.
#[derive(Debug)]
pub(super) struct TemporalUp {
    conv: TimeConv,
    slot: usize,
}

impl TemporalUp {
    pub(super) fn load(l: &mut Loader, name: &str, channels: i64) -> Result<Self, WeightsError> {
        Ok(Self { conv: TimeConv::load(l, name, channels, 2 * channels)?, slot: l.slot() })
    }

    /// The first call of a stream passes its frame through and remembers only that it did: the second call has zeros as
    /// context, not the first frame.
    pub(super) fn forward(&self, x: Tensor, slots: &mut Slots) -> Tensor {
        let [frames, height, width, channels] = dimensions(&x);
        let context = match slots.take(self.slot) {
            Slot::Empty => {
                slots.put(self.slot, Slot::Passed);
                return x;
            }
            Slot::Passed => Tensor::zeros([CONTEXT, height, width, channels], (x.kind(), x.device())),
            Slot::Frames(context) => context,
        };
        let padded = Tensor::cat(&[context, x], 0);
        slots.put_last(self.slot, &padded, CONTEXT);
        let pairs = self.conv.forward(&padded, 1).view([frames, height, width, 2, channels]);
        pairs.permute([0, 3, 1, 2, 4]).reshape([2 * frames, height, width, channels])
    }
}

/// `[T, H, W, C]`, weight `[O, C, k, k]` -> `[T, H', W', O]`
fn within_frames(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, stride: i64, padding: i64) -> Tensor {
    let y = x.permute([0, 3, 1, 2]).conv2d(weight, bias, [stride, stride], [padding, padding], [1, 1], 1);
    y.permute([0, 2, 3, 1]).contiguous()
}

/// `[T + 2, H, W, C]`, weight `[O, C, 3, 3, 3]` -> `[T, H, W, O]`
fn over_frames(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    // The batch first, and then the order of dimensions: the library reads the layout from the strides.
    let volume = x.unsqueeze(0).permute([0, 4, 1, 2, 3]);
    let y = if (x.device(), x.kind()) == (Device::Cpu, Kind::Float) {
        // The library prefers a slower one for a batch of one.
        volume.mkldnn_convolution(weight, bias, [0, 1, 1], [1, 1, 1], [1, 1, 1], 1)
    } else {
        volume.conv3d(weight, bias, [1, 1, 1], [0, 1, 1], [1, 1, 1], 1)
    };
    y.permute([0, 2, 3, 4, 1]).contiguous().squeeze_dim(0)
}

/// `[T, H, W, C]`
fn dimensions(x: &Tensor) -> [i64; 4] {
    let size = x.size();
    <[i64; 4]>::try_from(size).unwrap_or_else(|size| panic!("activations [T, H, W, C]: {size:?}"))
}

/// The same values `[O, C, ..]` with the channels of a tap side by side.
fn channels_last(weight: &Tensor) -> Tensor {
    weight.movedim_int(1, -1).contiguous().movedim_int(-1, 1)
}
