//! The facts about a model that the rest of the cell is told.

use contract::model::{ModelInfo, Size};
use contract::tensor::Dtype;
use contract::{Digest, Error, Reason, WorldSize};
use tch::Device;
use wan::config::ModelConfig;
use wan::weights::{Component, Weights};

/// Identity of the generator's configuration and weights: equal exactly on ranks that may form a mesh.
///
/// # Errors
/// `bad_field` if the weights cannot be opened.
pub fn fingerprint(model: &ModelConfig, weights: &Weights) -> Result<String, Error> {
    let refused = |text: String| Error::new(Reason::BadField, format!("model.weights: {text}"));
    let source = weights.open(Component::Dit, Device::Cpu).map_err(|e| refused(e.to_string()))?;
    // What people may ask of a model is no part of it.
    let config = format!("{:?}", ModelConfig { examples: Vec::new(), ..model.clone() });
    Ok(Digest::of(&[config.as_bytes(), source.fingerprint().as_bytes()]).to_string())
}

/// # Errors
/// `bad_field` for a model whose numbers do not fit the contract's types.
pub fn model_info(model: &ModelConfig, fingerprint: &str) -> Result<ModelInfo, Error> {
    let count = |what: &str, n: i64| {
        u32::try_from(n)
            .map_err(|_| Error::new(Reason::BadField, format!("model {}: {what} is {n}", model.name)))
    };
    Ok(ModelInfo {
        name: model.name.clone(),
        fingerprint: fingerprint.to_owned(),
        sizes: model.sizes.iter().map(|&(height, width)| Size { width, height }).collect(),
        dtype: Dtype::F32,
        latent_channels: count("dit.in_dim", model.dit.in_dim)?,
        spatial_stride: count("the spatial stride", model.vae.spatial_factor())?,
        frames_per_chunk: count("num_frame_per_block", model.num_frame_per_block)?,
        context_frames: count("kv_cache_num_frames", model.kv_cache_num_frames)?,
        text_len: count("dit.text_len", model.dit.text_len)?,
        text_dim: count("dit.text_dim", model.dit.text_dim)?,
        recompute: model.family.recomputes(),
        extra_calls: u32::from(model.family.has_clean_pass()),
        default_steps: model.default_steps.clone(),
        default_attention_bias: model.default_bias as f32,
        world_sizes: model
            .valid_world_sizes()
            .into_iter()
            .map(WorldSize::try_from)
            .collect::<Result<_, _>>()?,
        examples: model.examples.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_tells_models_and_weights_apart() {
        let tiny = ModelConfig::named("tiny").unwrap();
        let of = |seed| fingerprint(&tiny, &Weights::Synthetic { seed }).unwrap();
        assert_eq!(of(42), of(42));
        assert_ne!(of(42), of(43));
        let mut other = tiny.clone();
        other.shift = 3.0;
        assert_ne!(of(42), fingerprint(&other, &Weights::Synthetic { seed: 42 }).unwrap());
        let shown = ModelConfig { examples: vec!["a red fox".into()], ..tiny.clone() };
        assert_eq!(of(42), fingerprint(&shown, &Weights::Synthetic { seed: 42 }).unwrap());
    }

    #[test]
    fn the_model_info_of_tiny_is_what_envelopes_are_checked_against() {
        let info = model_info(&ModelConfig::named("tiny").unwrap(), "aa").unwrap();
        assert_eq!(info.latent_shape(Size { width: 128, height: 128 }, 3), [1, 3, 16, 16, 16]);
        assert_eq!((info.recompute, info.extra_calls), (true, 0));
        assert_eq!(info.default_size(), Some(Size { width: 128, height: 128 }));
    }
}
