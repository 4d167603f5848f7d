//! The Wan 2.1 video VAE, as a whole clip at once or as an endless stream.
//!
//! A clip of `1 + 4n` frames has `1 + n` latents: the first frame stands alone, every further latent is four frames.
//! Convolutions in time are causal, so a stream only remembers the last two inputs of each of them. Those caches live in
//! [`EncoderStream`] and [`DecoderStream`]; the weights, in [`Vae`], are shared by all streams.
//!
//! Each stream has its own start. The reference keeps one "this is new" mark for encoder and decoder together, which
//! only a decode takes away; the numbers of the reference data do not depend on it.
//!
//! Activations lie in memory channels last, `[T, H, W, C]`, on every device. A GPU in bf16 has kernels of its own for what
//! stands between the convolutions ([`fused`]).

mod blocks;
mod cache;
mod conv;
mod decoder;
mod encoder;
pub mod fused;
mod loader;
mod norm;

use crate::config::VaeConfig;
use crate::weights::{TensorSource, WeightsError};
use cache::Slots;
use decoder::Decoder;
use encoder::Encoder;
use fused::Fused;
use loader::Loader;
use tch::{Device, Kind, Tensor};

/// Frames in the group that one latent after the first stands for.
const GROUP: i64 = 4;

/// Frames that cannot be encoded as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VaeError {
    #[error("frames: {got} in the first call of a stream; allowed: 1, or 5 and more")]
    FirstFrames { got: i64 },
    #[error("frames: {got} in a later call of a stream; allowed: positive multiples of {GROUP}")]
    LaterFrames { got: i64 },
}

/// What one stream of encode calls remembers.
#[derive(Debug, Default)]
pub struct EncoderStream(Slots);

/// What one stream of decode calls remembers.
#[derive(Debug, Default)]
pub struct DecoderStream(Slots);

macro_rules! stream {
    ($name:ident) => {
        impl $name {
            /// A stream that has seen nothing.
            pub fn new() -> Self {
                Self::default()
            }

            /// Whether the next call is the first of the stream.
            pub fn is_new(&self) -> bool {
                self.0.is_new()
            }

            /// Bytes that it keeps.
            pub fn bytes(&self) -> u64 {
                self.0.bytes()
            }

            /// Forgets everything: the next call is the first again.
            pub fn clear(&mut self) {
                self.0.clear();
            }
        }
    };
}

stream!(EncoderStream);
stream!(DecoderStream);

/// Weights of encoder and decoder on one device, in one dtype.
///
/// Pixels are RGB in [-1, 1], latents normalised with the config's mean and standard deviation. Inputs may have any
/// float dtype and lie on any device; outputs are float32 on the device of the weights. The batch is always 1. Methods
/// panic, like the tensor library under them, on tensors of another rank or channel count.
#[derive(Debug)]
pub struct Vae {
    encoder: Encoder,
    decoder: Decoder,
    /// `[z]`, float32.
    mean: Tensor,
    std: Tensor,
    device: Device,
    kind: Kind,
    fused: bool,
    missing: Option<String>,
}

impl Vae {
    /// Reads the weights under their original Wan names.
    ///
    /// # Errors
    /// The config asks for what this network has not; or whatever the source says of a tensor that is missing or has
    /// another shape.
    pub fn load(
        config: &VaeConfig,
        source: &dyn TensorSource,
        device: Device,
        kind: Kind,
    ) -> Result<Self, WeightsError> {
        if !config.attn_scales.is_empty() {
            let what = format!("vae attn_scales {:?}; allowed: none", config.attn_scales);
            return Err(WeightsError::Unsupported { what });
        }
        let _guard = tch::no_grad_guard();
        let constant = |values: &[f64]| Tensor::from_slice(values).to_kind(Kind::Float).to_device(device);
        let (fused, missing) = match (device.is_cuda(), kind) {
            (true, Kind::BFloat16) => match Fused::on(device) {
                Ok(fused) => (Some(fused), None),
                Err(error) => (None, Some(format!("fused kernels of the vae: {error}"))),
            },
            _ => (None, None),
        };
        let loader = || Loader::new(source, device, kind, fused.clone());
        Ok(Self {
            encoder: Encoder::load(config, loader())?,
            decoder: Decoder::load(config, loader())?,
            mean: constant(&config.latent_mean),
            std: constant(&config.latent_std),
            device,
            kind,
            fused: fused.is_some(),
            missing,
        })
    }

    /// What this device should have and does not, with the reason.
    pub fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// `fused` or `torch-eager`: what computes between the convolutions.
    pub fn elementwise_name(&self) -> &'static str {
        if self.fused { "fused" } else { "torch-eager" }
    }

    /// The next latents of a stream: `[1, T, z, h, w]` -> pixels `[1, F, 3, 8h, 8w]` clamped to [-1, 1]. The first
    /// latent of a stream gives one frame, every other four. However the latents are cut into calls, the bytes are the
    /// same.
    pub fn decode(&self, stream: &mut DecoderStream, latents: &Tensor) -> Tensor {
        self.decode_unclamped(stream, latents).clamp_(-1.0, 1.0)
    }

    /// [`decode`](Self::decode) without the clamp.
    pub fn decode_unclamped(&self, stream: &mut DecoderStream, latents: &Tensor) -> Tensor {
        tch::no_grad(|| {
            // [1, T, z, h, w] -> [T, h, w, z]
            let z = latents.squeeze_dim(0).permute([0, 2, 3, 1]).to_device(self.device).to_kind(Kind::Float);
            let z = (z * &self.std + &self.mean).to_kind(self.kind).contiguous();
            // One at a time: less memory, and the activations stay nearer to the processor.
            let frames: Vec<Tensor> =
                z.split(1, 0).iter().map(|z| self.decoder.forward(z, &mut stream.0)).collect();
            Tensor::cat(&frames, 0).permute([0, 3, 1, 2]).to_kind(Kind::Float).contiguous().unsqueeze(0)
        })
    }

    /// A whole clip of latents `[1, T, z, h, w]` -> `[1, 4T - 3, 3, 8h, 8w]`, clamped.
    pub fn decode_clip(&self, latents: &Tensor) -> Tensor {
        self.decode(&mut DecoderStream::new(), latents)
    }

    /// The next frames of a stream: `[1, 3, F, H, W]` -> latents `[1, t, z, H/8, W/8]`.
    ///
    /// The first call takes the first frame alone and then all others together; frames that do not complete a group of
    /// four give no latent and only enter the caches. Later calls take whole groups.
    ///
    /// # Errors
    /// A number of frames that cannot be grouped so.
    pub fn encode(&self, stream: &mut EncoderStream, pixels: &Tensor) -> Result<Tensor, VaeError> {
        let got = pixels.size()[2];
        let groups = if stream.is_new() {
            match got {
                1 => vec![1],
                got if got > GROUP => vec![1, got - 1],
                got => return Err(VaeError::FirstFrames { got }),
            }
        } else if got > 0 && got % GROUP == 0 {
            groups_of_four(got)
        } else {
            return Err(VaeError::LaterFrames { got });
        };
        Ok(self.encode_groups(&mut stream.0, pixels, &groups))
    }

    /// A whole clip `[1, 3, F, H, W]` -> latents `[1, 1 + (F - 1) / 4, z, H/8, W/8]`. Frames after the last whole group
    /// of four are left out.
    pub fn encode_clip(&self, pixels: &Tensor) -> Tensor {
        let mut groups = vec![1];
        groups.extend(groups_of_four(pixels.size()[2] - 1));
        self.encode_groups(&mut Slots::default(), pixels, &groups)
    }

    /// One frame `[1, 3, 1, H, W]` as a clip of its own -> latent `[1, 1, z, H/8, W/8]`.
    pub fn encode_frame(&self, frame: &Tensor) -> Tensor {
        self.encode_clip(frame)
    }

    /// Encodes the leading frames of `pixels`, in groups of the given sizes.
    fn encode_groups(&self, slots: &mut Slots, pixels: &Tensor, groups: &[i64]) -> Tensor {
        tch::no_grad(|| {
            // [1, 3, F, H, W] -> [F, H, W, 3]
            let frames = pixels.squeeze_dim(0).permute([1, 2, 3, 0]);
            let frames = frames.to_device(self.device).to_kind(self.kind);
            let mut start = 0;
            let means: Vec<Tensor> = groups
                .iter()
                .map(|count| {
                    let group = frames.narrow(0, start, *count);
                    start += count;
                    self.encoder.forward(&group, slots)
                })
                .collect();
            let mean = Tensor::cat(&means, 0).to_kind(Kind::Float);
            ((mean - &self.mean) / &self.std).permute([0, 3, 1, 2]).contiguous().unsqueeze(0)
        })
    }
}

/// Sizes of the whole groups in `frames`.
fn groups_of_four(frames: i64) -> Vec<i64> {
    std::iter::repeat_n(GROUP, usize::try_from(frames / GROUP).unwrap_or(0)).collect()
}
