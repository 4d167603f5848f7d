//! Loading what stage 0 runs: text encoder and VAE.

use contract::Error;
use contract::model::ModelInfo;
use engine::Reading;
use engine::settings::{DeviceSection, ModelSection};
use runtime::ConfigError;
use tch::Device;
use tracing::{info, warn};
use wan::memory;
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
pub(crate) fn load(
    model: &ModelSection,
    device: &DeviceSection,
    sessions: u32,
) -> Result<Loaded, ConfigError> {
    let at = |key: &'static str| move |e: Error| ConfigError::new(key, e.message);
    let refused = |e: &dyn std::fmt::Display| ConfigError::new("model.weights", e.to_string());
    let config = model.config().map_err(at("model.name"))?;
    let weights = model.weights().map_err(at("model.weights"))?;
    let chosen = device.resolve().map_err(at("device.kind"))?;
    info!(device = ?chosen.device, because = chosen.because, "device");
    let fits = engine::check_stage0(&config, sessions, chosen.device, device.memory_limit());
    info!("{}", fits.map_err(at("device"))?);
    let (device, kind) = (chosen.device, engine::compute_kind(chosen.device));
    let reading = |what: &str, component, elements| {
        let source = weights.open(component, device).map_err(|e| refused(&e))?;
        Ok(Reading::begin(what, source, elements, (kind, device)))
    };
    let text = reading("text encoder", Component::Text, memory::encoder(&config.text))?;
    let encoder = TextEncoder::load(&config.text, &text, TokenizerSource::beside(&weights), device, kind)
        .map_err(|e| refused(&e))?;
    text.end();
    let source = reading("vae", Component::Vae, memory::autoencoder(&config.vae).read)?;
    let vae = Vae::load(&config.vae, &source, device, kind).map_err(|e| refused(&e))?;
    source.end();
    if let Some(missing) = vae.missing() {
        warn!(missing, "libtorch's own operations take its place, which are slower");
    }
    // The generator is not loaded here, but its identity must be the mesh's.
    let fingerprint = engine::fingerprint(&config, &weights).map_err(at("model.weights"))?;
    let model = engine::model_info(&config, &fingerprint).map_err(at("model.name"))?;
    Ok(Loaded { model, studio: Studio::new(encoder, vae), device })
}
