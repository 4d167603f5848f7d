//! The VAE: a walk over its layers that adds up instead of computing.

use tch::Kind;

use super::bytes;
use crate::config::VaeConfig;

/// Parameters of encoder and decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// Read from the checkpoint.
    pub read: i64,
    /// Held once more: the tap of the present frame of each convolution in space and time.
    pub copies: i64,
}

/// What the layers so far hold. Pictures are counted in latents' pixels at the start and grow with each level.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    parameters: Parameters,
    /// Elements of a stream's caches: the last two inputs of each convolution in time.
    stream: i64,
}

impl Tally {
    fn norm(&mut self, channels: i64) {
        self.parameters.read += channels;
    }

    fn within_frames(&mut self, cin: i64, cout: i64, kernel: i64) {
        self.parameters.read += cout * cin * kernel * kernel + cout;
    }

    /// Three taps in time over pictures of `pixels`.
    fn over_frames(&mut self, cin: i64, cout: i64, kernel: i64, pixels: i64) {
        let tap = cout * cin * kernel * kernel;
        self.parameters.read += 3 * tap + cout;
        // One without spatial extent keeps no tap by itself.
        self.parameters.copies += if kernel > 1 { tap } else { 0 };
        self.stream += 2 * cin * pixels;
    }

    fn residual(&mut self, cin: i64, cout: i64, pixels: i64) {
        self.norm(cin);
        self.over_frames(cin, cout, 3, pixels);
        self.norm(cout);
        self.over_frames(cout, cout, 3, pixels);
        if cin != cout {
            self.within_frames(cin, cout, 1);
        }
    }

    fn middle(&mut self, channels: i64, pixels: i64) {
        self.residual(channels, channels, pixels);
        self.norm(channels);
        self.within_frames(channels, 3 * channels, 1);
        self.within_frames(channels, channels, 1);
        self.residual(channels, channels, pixels);
    }

    fn head(&mut self, cin: i64, cout: i64, pixels: i64) {
        self.norm(cin);
        self.over_frames(cin, cout, 3, pixels);
    }
}

/// As [`crate::vae`]'s decoder is built, for latents of `pixels`.
fn decoder(config: &VaeConfig, mut pixels: i64) -> Tally {
    let mut tally = Tally::default();
    let mut channels = config.dim * config.dim_mult.last().copied().unwrap_or(1);
    tally.within_frames(config.z_dim, config.z_dim, 1);
    tally.over_frames(config.z_dim, channels, 3, pixels);
    tally.middle(channels, pixels);
    let temporal: Vec<bool> = config.temperal_downsample.iter().rev().copied().collect();
    for (level, mult) in config.dim_mult.iter().rev().enumerate() {
        for _ in 0..=config.num_res_blocks {
            tally.residual(channels, config.dim * mult, pixels);
            channels = config.dim * mult;
        }
        if let Some(temporal) = temporal.get(level) {
            if *temporal {
                tally.over_frames(channels, 2 * channels, 1, pixels);
            }
            tally.within_frames(channels, channels / 2, 3);
            channels /= 2;
            pixels *= 4;
        }
    }
    tally.head(channels, 3, pixels);
    tally
}

/// As [`crate::vae`]'s encoder is built. Its streams last for one frame only, so their caches are not asked for.
fn encoder(config: &VaeConfig) -> Parameters {
    let mut tally = Tally::default();
    tally.over_frames(3, config.dim, 3, 0);
    let mut channels = config.dim;
    for (level, mult) in config.dim_mult.iter().enumerate() {
        for _ in 0..config.num_res_blocks {
            tally.residual(channels, config.dim * mult, 0);
            channels = config.dim * mult;
        }
        if let Some(temporal) = config.temperal_downsample.get(level) {
            tally.within_frames(channels, channels, 3);
            if *temporal {
                tally.over_frames(channels, channels, 1, 0);
            }
        }
    }
    tally.middle(channels, 0);
    tally.head(channels, 2 * config.z_dim, 0);
    tally.within_frames(2 * config.z_dim, 2 * config.z_dim, 1);
    tally.parameters
}

/// Parameters of the whole VAE.
pub fn autoencoder(config: &VaeConfig) -> Parameters {
    let (encoder, decoder) = (encoder(config), decoder(config, 0).parameters);
    Parameters { read: encoder.read + decoder.read, copies: encoder.copies + decoder.copies }
}

/// Bytes that a decoder's stream keeps between calls, from its third latent on, for pictures of (height, width) pixels.
pub fn decoder_stream(config: &VaeConfig, (height, width): (u32, u32), kind: Kind) -> u64 {
    let factor = config.spatial_factor();
    let pixels = (i64::from(height) / factor) * (i64::from(width) / factor);
    bytes(decoder(config, pixels).stream, kind)
}

/// What decoding one latent works in: [`PEAK`] times the four pictures of the widest full-size layer.
pub fn decoding(config: &VaeConfig, (height, width): (u32, u32), kind: Kind) -> u64 {
    let widest = config.dim * config.dim_mult.first().copied().unwrap_or(1);
    let activation = config.temporal_factor() * widest * i64::from(height) * i64::from(width);
    bytes(PEAK * activation, kind)
}

/// The input of a block, the padded inputs and results of its two convolutions, and room for what the library works in.
/// Measured on a CPU.
const PEAK: i64 = 8;

#[cfg(test)]
mod tests {
    use tch::{Device, Tensor};

    use super::*;
    use crate::config::ModelConfig;
    use crate::vae::{DecoderStream, Vae};
    use crate::weights::SyntheticSource;

    #[test]
    fn a_stream_keeps_what_was_said() {
        let config = ModelConfig::named("tiny").unwrap().vae;
        let source = SyntheticSource::new(1);
        let vae = Vae::load(&config, &source, Device::Cpu, Kind::Float).unwrap();
        let mut stream = DecoderStream::new();
        let mut held = 0;
        for _ in 0..4 {
            let _ = vae
                .decode(&mut stream, &Tensor::zeros([1, 1, config.z_dim, 4, 6], (Kind::Float, Device::Cpu)));
            assert!(stream.bytes() >= held);
            held = stream.bytes();
        }
        assert_eq!(held, decoder_stream(&config, (32, 48), Kind::Float));
    }
}
