//! Latents (after denormalisation) to pixels.

use super::blocks::{Middle, NormConv, ResidualBlock};
use super::cache::Slots;
use super::conv::{CausalConv, FrameConv, Pointwise, TemporalUp};
use super::loader::Loader;
use crate::config::VaeConfig;
use crate::weights::WeightsError;
use tch::Tensor;

/// Doubles time where it has a temporal part, then height and width, and halves the channels.
#[derive(Debug)]
struct Up {
    temporal: Option<TemporalUp>,
    spatial: FrameConv,
}

impl Up {
    fn load(l: &mut Loader, name: &str, channels: i64, temporal: bool) -> Result<Self, WeightsError> {
        let spatial = FrameConv::load(l, &format!("{name}.resample.1"), channels, channels / 2)?;
        let temporal =
            if temporal { Some(TemporalUp::load(l, &format!("{name}.time_conv"), channels)?) } else { None };
        Ok(Self { temporal, spatial })
    }

    fn forward(&self, x: Tensor, slots: &mut Slots) -> Tensor {
        let x = match &self.temporal {
            Some(temporal) => temporal.forward(x, slots),
            None => x,
        };
        let size = x.size();
        // Through a view that the library takes for [T, C, H, W] stored channels last, as its result is.
        let larger = x.permute([0, 3, 1, 2]).upsample_nearest2d([2 * size[1], 2 * size[2]], None, None);
        self.spatial.forward(&larger.permute([0, 2, 3, 1]))
    }
}

#[derive(Debug)]
struct Level {
    blocks: Vec<ResidualBlock>,
    up: Option<Up>,
}

#[derive(Debug)]
pub(super) struct Decoder {
    /// Top-level 1x1 convolution.
    from_latent: Pointwise,
    conv_in: CausalConv,
    middle: Middle,
    levels: Vec<Level>,
    head: NormConv,
}

impl Decoder {
    pub(super) fn load(config: &VaeConfig, mut l: Loader) -> Result<Self, WeightsError> {
        let l = &mut l;
        let mut channels = config.dim * config.dim_mult.last().copied().unwrap_or(1);
        let from_latent = Pointwise::load_volume(l, "conv2", config.z_dim, config.z_dim)?;
        let conv_in = CausalConv::load(l, "decoder.conv1", config.z_dim, channels)?;
        let middle = Middle::load(l, "decoder.middle", channels)?;
        let mut levels = Vec::new();
        let mut index = 0;
        let mut next_name = || {
            index += 1;
            format!("decoder.upsamples.{}", index - 1)
        };
        let temporal: Vec<bool> = config.temperal_downsample.iter().rev().copied().collect();
        for (level, mult) in config.dim_mult.iter().rev().enumerate() {
            let mut blocks = Vec::new();
            for _ in 0..=config.num_res_blocks {
                blocks.push(ResidualBlock::load(l, &next_name(), channels, config.dim * mult)?);
                channels = config.dim * mult;
            }
            let up = match temporal.get(level) {
                Some(temporal) => Some(Up::load(l, &next_name(), channels, *temporal)?),
                None => None,
            };
            if up.is_some() {
                channels /= 2;
            }
            levels.push(Level { blocks, up });
        }
        let head = NormConv::load(l, "decoder.head", [0, 2], channels, 3)?;
        Ok(Self { from_latent, conv_in, middle, levels, head })
    }

    /// One latent `[1, h, w, z]` -> pixels `[1 or 4, 8h, 8w, 3]`: the first latent of a stream gives one frame.
    pub(super) fn forward(&self, latent: &Tensor, slots: &mut Slots) -> Tensor {
        let x = self.conv_in.forward_copy(&self.from_latent.forward(latent), slots);
        let mut x = self.middle.forward(x, slots);
        for level in &self.levels {
            for block in &level.blocks {
                x = block.forward(x, slots);
            }
            if let Some(up) = &level.up {
                x = up.forward(x, slots);
            }
        }
        self.head.forward(&x, slots)
    }
}
