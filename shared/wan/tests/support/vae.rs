//! The set's VAE.

use tch::{Kind, Tensor};
use wan::config::VaeConfig;
use wan::vae::{DecoderStream, Vae};
use wan::weights::SafetensorsSource;

use super::{device, json, path};

pub(crate) fn config() -> VaeConfig {
    json("wan_vae_config.json")
}

pub(crate) fn vae() -> Vae {
    let weights = SafetensorsSource::open(path("wan_vae_weights.safetensors")).unwrap();
    Vae::load(&config(), &weights, device(), Kind::Float).unwrap()
}

/// Frame `index` of what all latents of a stream decode to, encoded again as a clip of its own.
pub(crate) fn reencode(latents: &[Tensor], index: i64) -> Tensor {
    let vae = vae();
    let mut stream = DecoderStream::new();
    let pixels: Vec<Tensor> = latents.iter().map(|chunk| vae.decode(&mut stream, chunk)).collect();
    // Decoded pixels are [B, T, 3, H, W], encoder pixels [B, 3, T, H, W].
    vae.encode_frame(&Tensor::cat(&pixels, 1).narrow(1, index, 1).transpose(1, 2))
}
