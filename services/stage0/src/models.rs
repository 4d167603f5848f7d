//! Loading what stage 0 runs: text encoder and VAE.

use contract::Error;
use contract::model::ModelInfo;
use engine::settings::{DeviceSection, ModelSection};
use runtime::ConfigError;
use tch::Device;
use tracing::info;
use wan::text::{TextEncoder, TokenizerSource};
use wan::vae::Vae;
use wan::weights::Component;

use crate::studio::Studio;

pub(crate) struct Loaded {
    pub model: ModelInfo,
    pub studio: Studio,
    /// Where its tensors are.
    pub device: Device,
}

/// # Errors
/// The key that names something that cannot be had, and why.
pub(crate) fn load(model: &ModelSection, device: &DeviceSection) -> Result<Loaded, ConfigError> {
    let at = |key: &'static str| move |e: Error| ConfigError::new(key, e.message);
    let refused = |e: &dyn std::fmt::Display| ConfigError::new("model.weights", e.to_string());
    let config = model.config().map_err(at("model.name"))?;
    let weights = model.weights().map_err(at("model.weights"))?;
    let chosen = device.resolve().map_err(at("device.kind"))?;
    info!(device = ?chosen.device, because = chosen.because, "device");
    let (device, kind) = (chosen.device, engine::compute_kind(chosen.device));
    let text = weights.open(Component::Text, device).map_err(|e| refused(&e))?;
    let encoder =
        TextEncoder::load(&config.text, text.as_ref(), TokenizerSource::beside(&weights), device, kind)
            .map_err(|e| refused(&e))?;
    let source = weights.open(Component::Vae, device).map_err(|e| refused(&e))?;
    let vae = Vae::load(&config.vae, source.as_ref(), device, kind).map_err(|e| refused(&e))?;
    // The generator is not loaded here, but its identity must be the mesh's.
    let fingerprint = engine::fingerprint(&config, &weights).map_err(at("model.weights"))?;
    let model = engine::model_info(&config, &fingerprint).map_err(at("model.name"))?;
    Ok(Loaded { model, studio: Studio::new(encoder, vae), device })
}
