//! Pixels to the mean of a latent, before normalisation.

use super::blocks::{Middle, NormConv, ResidualBlock};
use super::cache::Slots;
use super::conv::{CausalConv, FrameConv, Pointwise, TemporalDown};
use super::loader::Loader;
use crate::config::VaeConfig;
use crate::weights::WeightsError;
use tch::Tensor;

/// Halves height and width, and then time where it has a temporal part.
#[derive(Debug)]
struct Down {
    spatial: FrameConv,
    temporal: Option<TemporalDown>,
}

impl Down {
    fn load(l: &mut Loader, name: &str, channels: i64, temporal: bool) -> Result<Self, WeightsError> {
        let spatial = FrameConv::load_strided(l, &format!("{name}.resample.1"), channels)?;
        let temporal = if temporal {
            Some(TemporalDown::load(l, &format!("{name}.time_conv"), channels)?)
        } else {
            None
        };
        Ok(Self { spatial, temporal })
    }

    fn forward(&self, x: &Tensor, slots: &mut Slots) -> Tensor {
        // One column of zeros on the right and one row at the bottom.
        let x = self.spatial.forward(&x.constant_pad_nd([0, 0, 0, 1, 0, 1]));
        match &self.temporal {
            Some(temporal) => temporal.forward(x, slots),
            None => x,
        }
    }
}

#[derive(Debug)]
struct Level {
    blocks: Vec<ResidualBlock>,
    down: Option<Down>,
}

#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: CausalConv,
    levels: Vec<Level>,
    middle: Middle,
    head: NormConv,
    /// Top-level 1x1 convolution to mean and log-variance.
    to_moments: Pointwise,
    z_dim: i64,
}

impl Encoder {
    pub(super) fn load(config: &VaeConfig, mut l: Loader) -> Result<Self, WeightsError> {
        let l = &mut l;
        let conv_in = CausalConv::load(l, "encoder.conv1", 3, config.dim)?;
        let mut levels = Vec::new();
        let (mut channels, mut index) = (config.dim, 0);
        let mut next_name = || {
            index += 1;
            format!("encoder.downsamples.{}", index - 1)
        };
        for (level, mult) in config.dim_mult.iter().enumerate() {
            let mut blocks = Vec::new();
            for _ in 0..config.num_res_blocks {
                blocks.push(ResidualBlock::load(l, &next_name(), channels, config.dim * mult)?);
                channels = config.dim * mult;
            }
            let down = match config.temperal_downsample.get(level) {
                Some(temporal) => Some(Down::load(l, &next_name(), channels, *temporal)?),
                None => None,
            };
            levels.push(Level { blocks, down });
        }
        let moments = 2 * config.z_dim;
        Ok(Self {
            conv_in,
            levels,
            middle: Middle::load(l, "encoder.middle", channels)?,
            head: NormConv::load(l, "encoder.head", [0, 2], channels, moments)?,
            to_moments: Pointwise::load_volume(l, "conv1", moments, moments)?,
            z_dim: config.z_dim,
        })
    }

    /// Pixels `[T, H, W, 3]` -> means `[t, H/8, W/8, z]`. The first call of a stream takes the first frame alone.
    pub(super) fn forward(&self, pixels: &Tensor, slots: &mut Slots) -> Tensor {
        let mut x = self.conv_in.forward_copy(pixels, slots);
        for level in &self.levels {
            for block in &level.blocks {
                x = block.forward(x, slots);
            }
            if let Some(down) = &level.down {
                x = down.forward(&x, slots);
            }
        }
        let x = self.head.forward(&self.middle.forward(x, slots), slots);
        self.to_moments.forward(&x).narrow(-1, 0, self.z_dim)
    }
}
