//! The models that can be served by name.

use super::{ConfigError, DitConfig, Family, ModelConfig, Umt5Config, VaeConfig};

/// Names that [`ModelConfig::named`] knows.
pub const MODEL_NAMES: [&str; 4] = ["tiny", "demo", "wan-1.3b", "wan-14b"];

/// Sizes and latent statistics of the small model that ships, as its training wrote them.
const DEMO: &str = include_str!("../../../../models/demo/config.json");

/// Mean of each latent channel over the training data, as published with the Wan 2.1 VAE.
const LATENT_MEAN: [f64; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
    -0.1922, -0.9497, 0.2503, -0.2921,
];
/// Standard deviation of each latent channel, from the same place.
const LATENT_STD: [f64; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
    1.1253, 2.8251, 1.9160,
];

impl ModelConfig {
    /// The model of that name.
    ///
    /// # Errors
    /// Names the allowed names.
    pub fn named(name: &str) -> Result<Self, ConfigError> {
        let config = match name {
            "tiny" => tiny(),
            "demo" => demo()?,
            "wan-1.3b" => wan_1_3b(),
            "wan-14b" => wan_14b(),
            _ => return Err(ConfigError::UnknownModel { name: name.to_owned() }),
        };
        config.validate()?;
        Ok(config)
    }
}

/// Made from a seed, no download: every layer of the real thing, small enough for two CPU cores to stream.
fn tiny() -> ModelConfig {
    ModelConfig {
        name: "tiny".into(),
        family: Family::Krea,
        dit: dit(128, 512, 4, 4, 64, 64, 64),
        text: Umt5Config { vocab: 384, text_len: 64, ..umt5(64, 64, 128, 4, 2) },
        // Of twelve frames on a CPU the decoder takes a good part of the time: the narrowest that keeps every kind of layer.
        vae: VaeConfig { num_res_blocks: 1, ..vae(4) },
        sizes: vec![(128, 128), (160, 160), (96, 160), (160, 96)],
        ..krea()
    }
}

/// The trained model of `models/demo`.
fn demo() -> Result<ModelConfig, ConfigError> {
    let invalid = |e: serde_json::Error| ConfigError::Invalid { model: "demo".into(), what: e.to_string() };
    serde_json::from_str(DEMO).map_err(invalid)
}

/// Wan 2.1 T2V 1.3B as distilled by Self-Forcing.
fn wan_1_3b() -> ModelConfig {
    ModelConfig {
        name: "wan-1.3b".into(),
        family: Family::SelfForcing { sink_size: 1 },
        dit: dit(1536, 8960, 12, 30, 4096, 512, 256),
        default_bias: 1.0,
        ..krea()
    }
}

/// Wan 2.1 T2V 14B as distilled by Krea Realtime.
fn wan_14b() -> ModelConfig {
    ModelConfig { name: "wan-14b".into(), dit: dit(5120, 13824, 40, 40, 4096, 512, 256), ..krea() }
}

/// What the named models share; the sizes are those of the 14B checkpoint's text encoder and VAE.
fn krea() -> ModelConfig {
    ModelConfig {
        name: String::new(),
        family: Family::Krea,
        dit: dit(5120, 13824, 40, 40, 4096, 512, 256),
        text: umt5(4096, 4096, 10240, 64, 24),
        vae: vae(96),
        shift: 5.0,
        default_steps: vec![1000, 750, 500, 250],
        default_bias: 0.3,
        sizes: vec![(320, 576), (480, 832), (832, 480), (576, 320)],
        num_frame_per_block: 3,
        kv_cache_num_frames: 3,
        local_attn_size: 6,
        examples: Vec::new(),
    }
}

fn dit(
    dim: i64,
    ffn_dim: i64,
    num_heads: i64,
    num_layers: i64,
    text_dim: i64,
    text_len: i64,
    freq_dim: i64,
) -> DitConfig {
    DitConfig {
        dim,
        ffn_dim,
        num_heads,
        num_layers,
        text_dim,
        text_len,
        freq_dim,
        in_dim: 16,
        out_dim: 16,
        patch_size: [1, 2, 2],
        qk_norm: true,
        cross_attn_norm: true,
        eps: 1e-6,
    }
}

fn umt5(dim: i64, dim_attn: i64, dim_ffn: i64, num_heads: i64, num_layers: i64) -> Umt5Config {
    Umt5Config {
        vocab: 256_384,
        dim,
        dim_attn,
        dim_ffn,
        num_heads,
        num_layers,
        num_buckets: 32,
        shared_pos: false,
        max_dist: 128,
        eps: 1e-6,
        text_len: 512,
    }
}

fn vae(dim: i64) -> VaeConfig {
    VaeConfig {
        dim,
        z_dim: 16,
        dim_mult: vec![1, 2, 4, 4],
        num_res_blocks: 2,
        attn_scales: Vec::new(),
        temperal_downsample: vec![false, true, true],
        latent_mean: LATENT_MEAN.to_vec(),
        latent_std: LATENT_STD.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_gives_a_valid_config() {
        for name in MODEL_NAMES {
            assert_eq!(ModelConfig::named(name).unwrap().name, name);
        }
    }

    #[test]
    fn unknown_name_is_refused_with_the_allowed_ones() {
        let error = ModelConfig::named("wan-2b").unwrap_err().to_string();
        assert_eq!(error, "model: unknown name \"wan-2b\"; allowed: tiny, demo, wan-1.3b, wan-14b");
    }

    #[test]
    fn world_sizes_divide_heads_and_features() {
        let sizes = |name| ModelConfig::named(name).unwrap().valid_world_sizes();
        assert_eq!(sizes("tiny"), [1, 2, 4]);
        assert_eq!(sizes("wan-1.3b"), [1, 2, 4]);
        assert_eq!(sizes("wan-14b"), [1, 2, 4, 8]);
    }

    #[test]
    fn a_config_that_does_not_fit_together_is_refused_by_field() {
        let mut config = ModelConfig::named("tiny").unwrap();
        config.dit.text_dim = 65;
        assert!(config.validate().unwrap_err().to_string().contains("65"));
        let mut config = ModelConfig::named("tiny").unwrap();
        config.sizes.push((120, 128));
        assert!(config.validate().unwrap_err().to_string().contains("120x128"));
    }

    #[test]
    fn config_survives_json() {
        let config = ModelConfig::named("wan-1.3b").unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ModelConfig>(&json).unwrap(), config);
    }
}
