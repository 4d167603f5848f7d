//! The video VAE of [`wan::vae`] for training: whole clips in batches `[B, C, T, H, W]`, with gradients.
//!
//! The same function as the streaming one, whose cuts into calls change nothing: a test compares the two on exported weights.

use tch::{Kind, Tensor};
use wan::config::VaeConfig;

use crate::parameters::{Init, Layout, Slot, Weights};

#[derive(Clone, Copy, Debug)]
struct Conv {
    weight: Slot,
    bias: Slot,
}

impl Conv {
    fn new(l: &mut Layout, name: &str, shape: &[i64], gain: f64) -> Self {
        let (weight, bias) = l.linear(name, shape, gain);
        Self { weight, bias }
    }

    /// Kernel 3 in time, causal; a spatial kernel of `2 * padding + 1`.
    fn causal(self, w: &Weights, x: &Tensor, padding: i64) -> Tensor {
        let bias = Some(&w[self.bias]);
        let (one, p) = ([1, 1, 1], padding);
        // Padding on both sides and leaving out the end saves a copy of the input.
        x.conv3d(&w[self.weight], bias, one, [2, p, p], one, 1).narrow(2, 0, x.size()[2])
    }

    /// Within frames; the weight has no temporal axis.
    fn framewise(self, w: &Weights, x: &Tensor, stride: i64, padding: i64) -> Tensor {
        let (s, p) = (stride, padding);
        x.conv3d(&w[self.weight].unsqueeze(2), Some(&w[self.bias]), [1, s, s], [0, p, p], [1, 1, 1], 1)
    }

    /// 1x1x1, with its temporal axis.
    fn pointwise(self, w: &Weights, x: &Tensor) -> Tensor {
        x.conv3d(&w[self.weight], Some(&w[self.bias]), [1, 1, 1], [0, 0, 0], [1, 1, 1], 1)
    }
}

fn norm(w: &Weights, gamma: Slot, x: &Tensor) -> Tensor {
    let channels = x.size()[1];
    // The statistic in f32: in half precision its gradient overflows where activations are small.
    let length = x.norm_scalaropt_dim_dtype(2, [1].as_slice(), true, Kind::Float);
    let scale = length.clamp_min(1e-4).reciprocal().to_kind(x.kind());
    x * scale * (w[gamma].view([1, channels, 1, 1, 1]) * (channels as f64).sqrt())
}

#[derive(Debug)]
struct ResidualBlock {
    norms: [Slot; 2],
    convs: [Conv; 2],
    shortcut: Option<Conv>,
}

impl ResidualBlock {
    fn new(l: &mut Layout, name: &str, cin: i64, cout: i64) -> Self {
        let gamma = |l: &mut Layout, part: &str, c| {
            l.add(format!("{name}.residual.{part}.gamma"), &[c, 1, 1, 1], Init::Constant(1.0))
        };
        Self {
            norms: [gamma(l, "0", cin), gamma(l, "3", cout)],
            convs: [
                Conv::new(l, &format!("{name}.residual.2"), &[cout, cin, 3, 3, 3], 1.0),
                Conv::new(l, &format!("{name}.residual.6"), &[cout, cout, 3, 3, 3], 0.5),
            ],
            shortcut: (cin != cout)
                .then(|| Conv::new(l, &format!("{name}.shortcut"), &[cout, cin, 1, 1, 1], 1.0)),
        }
    }

    fn forward(&self, w: &Weights, x: &Tensor) -> Tensor {
        let y = self.convs[0].causal(w, &norm(w, self.norms[0], x).silu(), 1);
        let y = self.convs[1].causal(w, &norm(w, self.norms[1], &y).silu(), 1);
        match self.shortcut {
            Some(shortcut) => y + shortcut.pointwise(w, x),
            None => y + x,
        }
    }
}

#[derive(Debug)]
struct Middle {
    before: ResidualBlock,
    norm: Slot,
    to_qkv: Conv,
    proj: Conv,
    after: ResidualBlock,
}

impl Middle {
    fn new(l: &mut Layout, name: &str, c: i64) -> Self {
        Self {
            before: ResidualBlock::new(l, &format!("{name}.0"), c, c),
            norm: l.add(format!("{name}.1.norm.gamma"), &[c, 1, 1], Init::Constant(1.0)),
            to_qkv: Conv::new(l, &format!("{name}.1.to_qkv"), &[3 * c, c, 1, 1], 1.0),
            proj: Conv::new(l, &format!("{name}.1.proj"), &[c, c, 1, 1], 0.2),
            after: ResidualBlock::new(l, &format!("{name}.2"), c, c),
        }
    }

    fn forward(&self, w: &Weights, x: &Tensor) -> Tensor {
        let x = self.before.forward(w, x);
        let size = x.size();
        let (b, c, t, h, wide) = (size[0], size[1], size[2], size[3], size[4]);
        let qkv = self.to_qkv.framewise(w, &norm(w, self.norm, &x), 1, 0);
        // [B, 3C, T, H, W] -> three of [B * T, 1, HW, C]
        let qkv = qkv.permute([0, 2, 3, 4, 1]).reshape([b * t, 1, h * wide, 3 * c]).chunk(3, -1);
        let y = Tensor::scaled_dot_product_attention(
            &qkv[0],
            &qkv[1],
            &qkv[2],
            None::<&Tensor>,
            0.0,
            false,
            None,
            false,
        );
        let y = y.reshape([b, t, h, wide, c]).permute([0, 4, 1, 2, 3]);
        self.after.forward(w, &(x + self.proj.framewise(w, &y, 1, 0)))
    }
}

#[derive(Debug)]
struct Resample {
    spatial: Conv,
    temporal: Option<Conv>,
}

#[derive(Debug)]
struct Level {
    blocks: Vec<ResidualBlock>,
    resample: Option<Resample>,
}

#[derive(Debug)]
struct Ends {
    conv_in: Conv,
    middle: Middle,
    head_norm: Slot,
    head: Conv,
    outer: Conv,
}

/// Encoder and decoder.
#[derive(Debug)]
pub struct TrainVae {
    encoder: (Ends, Vec<Level>),
    decoder: (Ends, Vec<Level>),
    z_dim: i64,
}

impl TrainVae {
    pub fn new(config: &VaeConfig, l: &mut Layout) -> Self {
        Self { encoder: encoder(config, l), decoder: decoder(config, l), z_dim: config.z_dim }
    }

    /// Pixels `[B, 3, 1 + 4n, H, W]` in [-1, 1] -> mean and log-variance `[B, z, 1 + n, H/8, W/8]`, not normalised.
    pub fn encode(&self, w: &Weights, pixels: &Tensor) -> (Tensor, Tensor) {
        let (ends, levels) = &self.encoder;
        let mut x = ends.conv_in.causal(w, &channels_last(pixels), 1);
        for level in levels {
            for block in &level.blocks {
                x = block.forward(w, &x);
            }
            if let Some(down) = &level.resample {
                x = down.spatial.framewise(w, &x.constant_pad_nd([0, 1, 0, 1]), 2, 0);
                if let Some(temporal) = down.temporal {
                    x = halve_time(w, temporal, &x);
                }
            }
        }
        let x = norm(w, ends.head_norm, &ends.middle.forward(w, &x)).silu();
        let moments = ends.outer.pointwise(w, &ends.head.causal(w, &x, 1));
        (moments.narrow(1, 0, self.z_dim), moments.narrow(1, self.z_dim, self.z_dim))
    }

    /// Latents `[B, z, 1 + n, h, w]`, not normalised -> pixels `[B, 3, 1 + 4n, 8h, 8w]`, not clamped.
    pub fn decode(&self, w: &Weights, latents: &Tensor) -> Tensor {
        let (ends, levels) = &self.decoder;
        let x = ends.conv_in.causal(w, &ends.outer.pointwise(w, &channels_last(latents)), 1);
        let mut x = ends.middle.forward(w, &x);
        for level in levels {
            for block in &level.blocks {
                x = block.forward(w, &x);
            }
            if let Some(up) = &level.resample {
                if let Some(temporal) = up.temporal {
                    x = double_time(w, temporal, &x);
                }
                let size = x.size();
                let wide = x.upsample_nearest3d([size[2], 2 * size[3], 2 * size[4]], None, None, None);
                x = up.spatial.framewise(w, &wide, 1, 1);
            }
        }
        ends.head.causal(w, &norm(w, ends.head_norm, &x).silu(), 1)
    }
}

/// The first frame passes; after it, kernel 3 and stride 2.
fn halve_time(w: &Weights, conv: Conv, x: &Tensor) -> Tensor {
    let first = x.narrow(2, 0, 1);
    if x.size()[2] == 1 {
        return first;
    }
    let rest = x.conv3d(&w[conv.weight], Some(&w[conv.bias]), [2, 1, 1], [0, 0, 0], [1, 1, 1], 1);
    Tensor::cat(&[first, rest], 2)
}

/// The first frame passes; the others, which do not see it, become two each.
fn double_time(w: &Weights, conv: Conv, x: &Tensor) -> Tensor {
    let size = x.size();
    let (b, c, t, h, wide) = (size[0], size[1], size[2], size[3], size[4]);
    let first = x.narrow(2, 0, 1);
    if t == 1 {
        return first;
    }
    let rest = conv.causal(w, &x.narrow(2, 1, t - 1), 0);
    // Channels stay last: [B, T, H, W, 2, C] -> [B, T, 2, H, W, C].
    let rest = rest.permute([0, 2, 3, 4, 1]).reshape([b, t - 1, h, wide, 2, c]).permute([0, 1, 4, 2, 3, 5]);
    Tensor::cat(&[first, rest.reshape([b, 2 * (t - 1), h, wide, c]).permute([0, 4, 1, 2, 3])], 2)
}

/// The same values with the channels of a pixel side by side: with few channels in f16 a convolution is four times as fast
/// so on an H100.
fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 4, 1]).contiguous().permute([0, 4, 1, 2, 3])
}

fn encoder(config: &VaeConfig, l: &mut Layout) -> (Ends, Vec<Level>) {
    let mut channels = config.dim;
    let conv_in = Conv::new(l, "encoder.conv1", &[channels, 3, 3, 3, 3], 1.0);
    let mut index = 0;
    let mut name = || {
        index += 1;
        format!("encoder.downsamples.{}", index - 1)
    };
    let mut levels = Vec::new();
    for (level, mult) in config.dim_mult.iter().enumerate() {
        let mut blocks = Vec::new();
        for _ in 0..config.num_res_blocks {
            blocks.push(ResidualBlock::new(l, &name(), channels, config.dim * mult));
            channels = config.dim * mult;
        }
        let resample = config.temperal_downsample.get(level).map(|temporal| {
            let name = name();
            Resample {
                spatial: Conv::new(l, &format!("{name}.resample.1"), &[channels, channels, 3, 3], 1.0),
                temporal: temporal
                    .then(|| Conv::new(l, &format!("{name}.time_conv"), &[channels, channels, 3, 1, 1], 1.0)),
            }
        });
        levels.push(Level { blocks, resample });
    }
    let moments = 2 * config.z_dim;
    let ends = Ends {
        conv_in,
        middle: Middle::new(l, "encoder.middle", channels),
        head_norm: l.add("encoder.head.0.gamma", &[channels, 1, 1, 1], Init::Constant(1.0)),
        head: Conv::new(l, "encoder.head.2", &[moments, channels, 3, 3, 3], 1.0),
        outer: Conv::new(l, "conv1", &[moments, moments, 1, 1, 1], 1.0),
    };
    (ends, levels)
}

fn decoder(config: &VaeConfig, l: &mut Layout) -> (Ends, Vec<Level>) {
    let mut channels = config.dim * config.dim_mult.last().copied().unwrap_or(1);
    let outer = Conv::new(l, "conv2", &[config.z_dim, config.z_dim, 1, 1, 1], 1.0);
    let conv_in = Conv::new(l, "decoder.conv1", &[channels, config.z_dim, 3, 3, 3], 1.0);
    let middle = Middle::new(l, "decoder.middle", channels);
    let mut index = 0;
    let mut name = || {
        index += 1;
        format!("decoder.upsamples.{}", index - 1)
    };
    let temporal: Vec<bool> = config.temperal_downsample.iter().rev().copied().collect();
    let mut levels = Vec::new();
    for (level, mult) in config.dim_mult.iter().rev().enumerate() {
        let mut blocks = Vec::new();
        for _ in 0..=config.num_res_blocks {
            blocks.push(ResidualBlock::new(l, &name(), channels, config.dim * mult));
            channels = config.dim * mult;
        }
        let resample = temporal.get(level).map(|temporal| {
            let name = name();
            let c = channels;
            channels /= 2;
            Resample {
                spatial: Conv::new(l, &format!("{name}.resample.1"), &[c / 2, c, 3, 3], 1.0),
                temporal: temporal
                    .then(|| Conv::new(l, &format!("{name}.time_conv"), &[2 * c, c, 3, 1, 1], 1.0)),
            }
        });
        levels.push(Level { blocks, resample });
    }
    let head_norm = l.add("decoder.head.0.gamma", &[channels, 1, 1, 1], Init::Constant(1.0));
    let head = Conv::new(l, "decoder.head.2", &[3, channels, 3, 3, 3], 0.5);
    (Ends { conv_in, middle, head_norm, head, outer }, levels)
}
