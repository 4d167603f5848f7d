//! Normalisation with its convolution, residual block, attention and the middle block that encoder and decoder share.

use super::cache::Slots;
use super::conv::{CausalConv, Pointwise};
use super::fused::Fused;
use super::loader::Loader;
use super::norm::RmsNorm;
use crate::weights::WeightsError;
use std::sync::Arc;
use tch::Tensor;

/// Norm, SiLU, and the convolution of it.
#[derive(Debug)]
pub(super) struct NormConv {
    norm: RmsNorm,
    conv: CausalConv,
}

impl NormConv {
    /// Two members of the sequence `name`.
    pub(super) fn load(
        l: &mut Loader,
        name: &str,
        [norm, conv]: [usize; 2],
        cin: i64,
        cout: i64,
    ) -> Result<Self, WeightsError> {
        Ok(Self {
            norm: RmsNorm::load(l, &format!("{name}.{norm}.gamma"), &[cin, 1, 1, 1])?,
            conv: CausalConv::load(l, &format!("{name}.{conv}"), cin, cout)?,
        })
    }

    /// `[T, H, W, C]` -> `[T, H, W, O]`
    pub(super) fn forward(&self, x: &Tensor, slots: &mut Slots) -> Tensor {
        self.forward_biased(x, None, slots)
    }

    /// The same of `x + bias`, by a kernel; `bias` is `[C]`.
    fn forward_biased(&self, x: &Tensor, bias: Option<&Tensor>, slots: &mut Slots) -> Tensor {
        let input = self.conv.room_for(x, slots);
        self.norm.write_silu(x, bias, &input.frames());
        self.conv.forward(&input, slots)
    }
}

/// Twice norm, SiLU and convolution, plus a shortcut (1x1 where the channels differ).
#[derive(Debug)]
pub(super) struct ResidualBlock {
    first: NormConv,
    second: NormConv,
    shortcut: Option<Pointwise>,
    late: Option<LateBiases>,
}

/// The biases of a block's convolutions, which kernels add on their way: by itself that is a pass over the pixels.
#[derive(Debug)]
struct LateBiases {
    fused: Arc<Fused>,
    first: Tensor,
    second: Tensor,
}

impl ResidualBlock {
    pub(super) fn load(l: &mut Loader, name: &str, cin: i64, cout: i64) -> Result<Self, WeightsError> {
        let residual = format!("{name}.residual");
        let mut first = NormConv::load(l, &residual, [0, 2], cin, cout)?;
        let mut second = NormConv::load(l, &residual, [3, 6], cout, cout)?;
        let late = l.fused(cout).and_then(|fused| {
            Some(LateBiases { fused, first: first.conv.take_bias()?, second: second.conv.take_bias()? })
        });
        let shortcut = if cin == cout {
            None
        } else {
            Some(Pointwise::load_volume(l, &format!("{name}.shortcut"), cin, cout)?)
        };
        Ok(Self { first, second, shortcut, late })
    }

    pub(super) fn forward(&self, x: Tensor, slots: &mut Slots) -> Tensor {
        let y = self.first.forward(&x, slots);
        let mut y = self.second.forward_biased(&y, self.late.as_ref().map(|late| &late.first), slots);
        let x = match &self.shortcut {
            Some(shortcut) => shortcut.forward(&x),
            None => x,
        };
        match &self.late {
            Some(late) => {
                late.fused.add(&y, &x, &late.second).unwrap_or_else(|error| panic!("residual: {error}"));
            }
            None => y += x,
        }
        y
    }
}

/// One-head self-attention over the positions of each frame.
#[derive(Debug)]
struct FrameAttention {
    norm: RmsNorm,
    to_qkv: Pointwise,
    proj: Pointwise,
}

impl FrameAttention {
    fn load(l: &Loader, name: &str, channels: i64) -> Result<Self, WeightsError> {
        Ok(Self {
            norm: RmsNorm::load(l, &format!("{name}.norm.gamma"), &[channels, 1, 1])?,
            to_qkv: Pointwise::load(l, &format!("{name}.to_qkv"), channels, 3 * channels)?,
            proj: Pointwise::load(l, &format!("{name}.proj"), channels, channels)?,
        })
    }

    fn forward(&self, x: Tensor) -> Tensor {
        // [T, H, W, 3C] -> three of [T, 1 head, HW, C]
        let qkv = self.to_qkv.forward(&self.norm.forward(&x)).flatten(1, 2).unsqueeze(1).chunk(3, -1);
        let y = Tensor::scaled_dot_product_attention(
            &qkv[0].contiguous(),
            &qkv[1].contiguous(),
            &qkv[2].contiguous(),
            None::<&Tensor>,
            0.0,
            false,
            None,
            false,
        );
        let mut y = self.proj.forward(&y.reshape(x.size()));
        y += x;
        y
    }
}

/// Residual block, attention, residual block.
#[derive(Debug)]
pub(super) struct Middle {
    before: ResidualBlock,
    attention: FrameAttention,
    after: ResidualBlock,
}

impl Middle {
    pub(super) fn load(l: &mut Loader, name: &str, channels: i64) -> Result<Self, WeightsError> {
        Ok(Self {
            before: ResidualBlock::load(l, &format!("{name}.0"), channels, channels)?,
            attention: FrameAttention::load(l, &format!("{name}.1"), channels)?,
            after: ResidualBlock::load(l, &format!("{name}.2"), channels, channels)?,
        })
    }

    pub(super) fn forward(&self, x: Tensor, slots: &mut Slots) -> Tensor {
        let x = self.attention.forward(self.before.forward(x, slots));
        self.after.forward(x, slots)
    }
}
