//! Normalisation, residual block, attention and the middle block that encoder and decoder share.

use super::cache::Slots;
use super::conv::{CausalConv, FrameConv};
use super::loader::Loader;
use super::norm::RmsNorm;
use crate::weights::WeightsError;
use tch::Tensor;

/// Norm, SiLU, conv, norm, SiLU, conv, plus a shortcut (1x1 where the channels differ).
#[derive(Debug)]
pub(super) struct ResidualBlock {
    norm1: RmsNorm,
    conv1: CausalConv,
    norm2: RmsNorm,
    conv2: CausalConv,
    shortcut: Option<FrameConv>,
}

impl ResidualBlock {
    pub(super) fn load(l: &mut Loader, name: &str, cin: i64, cout: i64) -> Result<Self, WeightsError> {
        Ok(Self {
            norm1: RmsNorm::load(l, &format!("{name}.residual.0.gamma"), &[cin, 1, 1, 1])?,
            conv1: CausalConv::load(l, &format!("{name}.residual.2"), cin, cout, 3)?,
            norm2: RmsNorm::load(l, &format!("{name}.residual.3.gamma"), &[cout, 1, 1, 1])?,
            conv2: CausalConv::load(l, &format!("{name}.residual.6"), cout, cout, 3)?,
            shortcut: if cin == cout {
                None
            } else {
                Some(FrameConv::load_pointwise(l, &format!("{name}.shortcut"), cin, cout)?)
            },
        })
    }

    pub(super) fn forward(&self, x: Tensor, slots: &mut Slots) -> Tensor {
        let y = self.conv1.forward(&self.norm1.forward_silu(&x), slots);
        let mut y = self.conv2.forward(&self.norm2.forward_silu(&y), slots);
        match &self.shortcut {
            Some(shortcut) => y += shortcut.forward(&x),
            None => y += x,
        }
        y
    }
}

/// One-head self-attention over the positions of each frame.
#[derive(Debug)]
struct FrameAttention {
    norm: RmsNorm,
    to_qkv: FrameConv,
    proj: FrameConv,
}

impl FrameAttention {
    fn load(l: &Loader, name: &str, channels: i64) -> Result<Self, WeightsError> {
        Ok(Self {
            norm: RmsNorm::load(l, &format!("{name}.norm.gamma"), &[channels, 1, 1])?,
            to_qkv: FrameConv::load(l, &format!("{name}.to_qkv"), channels, 3 * channels, 1)?,
            proj: FrameConv::load(l, &format!("{name}.proj"), channels, channels, 1)?,
        })
    }

    fn forward(&self, x: Tensor) -> Tensor {
        let size = x.size();
        // [T, 3C, H, W] -> three of [T, 1 head, HW, C]
        let qkv = self
            .to_qkv
            .forward(&self.norm.forward(&x))
            .flatten(2, 3)
            .transpose(1, 2)
            .unsqueeze(1)
            .chunk(3, -1);
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
        let y = y.squeeze_dim(1).transpose(1, 2).reshape(&size);
        x + self.proj.forward(&y)
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

/// Norm, SiLU and the last convolution.
#[derive(Debug)]
pub(super) struct Head {
    norm: RmsNorm,
    conv: CausalConv,
}

impl Head {
    pub(super) fn load(l: &mut Loader, name: &str, cin: i64, cout: i64) -> Result<Self, WeightsError> {
        Ok(Self {
            norm: RmsNorm::load(l, &format!("{name}.0.gamma"), &[cin, 1, 1, 1])?,
            conv: CausalConv::load(l, &format!("{name}.2"), cin, cout, 3)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, slots: &mut Slots) -> Tensor {
        self.conv.forward(&self.norm.forward_silu(x), slots)
    }
}
