//! Which models there are, and what differs between them.
//!
//! The three part configs ([`DitConfig`], [`Umt5Config`], [`VaeConfig`]) read the JSON files that lie beside the
//! reference data; [`ModelConfig`] puts them together with what a checkpoint family prescribes for streaming.

use serde::{Deserialize, Serialize};

mod named;

pub use named::MODEL_NAMES;

/// Why a model config cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("model: unknown name {name:?}; allowed: {}", MODEL_NAMES.join(", "))]
    UnknownModel { name: String },
    #[error("model {model}: {what}")]
    Invalid { model: String, what: String },
}

/// Sizes of the diffusion transformer, under the names of the original Wan `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DitConfig {
    pub dim: i64,
    pub ffn_dim: i64,
    pub num_heads: i64,
    pub num_layers: i64,
    /// Width of one row of the text embedding.
    pub text_dim: i64,
    /// Rows that the text embedding is zero-padded to.
    pub text_len: i64,
    /// Width of the sinusoidal timestep embedding.
    pub freq_dim: i64,
    pub in_dim: i64,
    pub out_dim: i64,
    /// Latent frames, rows and columns in one token.
    pub patch_size: [i64; 3],
    pub qk_norm: bool,
    pub cross_attn_norm: bool,
    pub eps: f64,
}

impl DitConfig {
    /// Channels of one attention head.
    pub fn head_dim(&self) -> i64 {
        self.dim / self.num_heads
    }

    /// Tokens of one latent frame of `latent_height` x `latent_width`.
    pub fn tokens_per_frame(&self, latent_height: i64, latent_width: i64) -> i64 {
        (latent_height / self.patch_size[1]) * (latent_width / self.patch_size[2])
    }

    /// World sizes that give every rank the same whole number of heads and of feed-forward features, ascending.
    pub fn valid_world_sizes(&self) -> Vec<u32> {
        (1..=self.num_heads)
            .filter(|w| self.num_heads % w == 0 && self.ffn_dim % w == 0)
            .filter_map(|w| u32::try_from(w).ok())
            .collect()
    }
}

/// Sizes of the UMT5 text encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Umt5Config {
    pub vocab: i64,
    pub dim: i64,
    pub dim_attn: i64,
    pub dim_ffn: i64,
    pub num_heads: i64,
    pub num_layers: i64,
    pub num_buckets: i64,
    /// Whether all blocks share one relative-position table. UMT5 has one in every block.
    pub shared_pos: bool,
    /// Distance from which on all positions share the last bucket.
    pub max_dist: i64,
    pub eps: f64,
    /// Rows that ids are padded to.
    pub text_len: i64,
}

/// Sizes and normalisation constants of the video VAE.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VaeConfig {
    /// Channels of the first encoder level.
    pub dim: i64,
    /// Channels of a latent.
    pub z_dim: i64,
    pub dim_mult: Vec<i64>,
    pub num_res_blocks: i64,
    pub attn_scales: Vec<f64>,
    /// Which of the spatial down-samplings also halve time. The spelling is the checkpoint's.
    pub temperal_downsample: Vec<bool>,
    pub latent_mean: Vec<f64>,
    pub latent_std: Vec<f64>,
}

impl VaeConfig {
    /// Pixels per latent row or column.
    pub fn spatial_factor(&self) -> i64 {
        1 << self.temperal_downsample.len()
    }

    /// Video frames per latent frame after the first one.
    pub fn temporal_factor(&self) -> i64 {
        1 << self.temperal_downsample.iter().filter(|t| **t).count()
    }
}

/// How a checkpoint family streams. The two differ in more than a number, so this is one choice and not five switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Family {
    /// The KV cache is rebuilt from context frames before every chunk but the first; RoPE frames never leave the window.
    Krea,
    /// The KV cache rolls, keeping the first `sink_size` frames; each chunk ends with a pass on its clean result; RoPE
    /// frames grow without bound.
    SelfForcing { sink_size: i64 },
}

impl Family {
    /// Whether denoising steps are looked up in the shifted table (Self-Forcing) or used as they are (Krea).
    pub fn warps_steps(self) -> bool {
        matches!(self, Family::SelfForcing { .. })
    }

    /// Whether keys that no longer fit are evicted. Without it a pass that does not fit is an error.
    pub fn evicts(self) -> bool {
        matches!(self, Family::SelfForcing { .. })
    }

    /// Whether a chunk ends with a pass at timestep 0 that stores the keys of the clean result.
    pub fn has_clean_pass(self) -> bool {
        matches!(self, Family::SelfForcing { .. })
    }

    /// Whether the KV cache is rebuilt from context frames before every chunk but the first of a history.
    pub fn recomputes(self) -> bool {
        matches!(self, Family::Krea)
    }

    /// Leading frames that eviction never touches.
    pub fn sink_size(self) -> i64 {
        match self {
            Family::Krea => 0,
            Family::SelfForcing { sink_size } => sink_size,
        }
    }
}

/// Everything that identifies a model to the rest of the system. A cell serves exactly one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    pub name: String,
    pub family: Family,
    pub dit: DitConfig,
    pub text: Umt5Config,
    pub vae: VaeConfig,
    /// Shift of the flow-match sigma table.
    pub shift: f64,
    /// Strictly descending timesteps, as a user states them (before any warping).
    pub default_steps: Vec<u32>,
    /// Default weight of past frames in self-attention, in (0, 1]; 1 means no bias.
    pub default_bias: f64,
    /// Sizes (height, width) in pixels that the model is served at; the first is the default.
    pub sizes: Vec<(u32, u32)>,
    /// Latent frames in one chunk.
    pub num_frame_per_block: i64,
    /// Latent frames that a recompute pass rebuilds the KV cache from.
    pub kv_cache_num_frames: i64,
    /// Latent frames that the KV cache holds and a query attends to.
    pub local_attn_size: i64,
    /// Prompts that show what the model knows, for people who do not know it yet.
    #[serde(default)]
    pub examples: Vec<String>,
}

impl ModelConfig {
    /// World sizes that the plan `v1_generator_only` can shard this model over, ascending.
    pub fn valid_world_sizes(&self) -> Vec<u32> {
        self.dit.valid_world_sizes()
    }

    /// Rows and columns of the latents of a picture of `height` x `width` pixels.
    pub fn latent_size(&self, height: u32, width: u32) -> (i64, i64) {
        let factor = self.vae.spatial_factor();
        (i64::from(height) / factor, i64::from(width) / factor)
    }

    /// Whether a picture size is one of those the model is served at.
    pub fn serves(&self, height: u32, width: u32) -> bool {
        self.sizes.contains(&(height, width))
    }

    /// Checks what the code relies on.
    ///
    /// # Errors
    /// Names the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |what: String| Err(ConfigError::Invalid { model: self.name.clone(), what });
        let dit = &self.dit;
        if dit.num_heads <= 0 || dit.dim % dit.num_heads != 0 {
            return invalid(format!("dit.num_heads {} does not divide dit.dim {}", dit.num_heads, dit.dim));
        }
        if dit.head_dim() % 2 != 0 {
            return invalid(format!("head width {} is odd; rotary embedding turns pairs", dit.head_dim()));
        }
        if dit.text_dim != self.text.dim || dit.text_len != self.text.text_len {
            return invalid(format!(
                "dit takes text [{}, {}], the encoder gives [{}, {}]",
                dit.text_len, dit.text_dim, self.text.text_len, self.text.dim
            ));
        }
        if dit.in_dim != self.vae.z_dim || dit.out_dim != self.vae.z_dim {
            return invalid(format!(
                "dit has {} and {} channels, the vae {}",
                dit.in_dim, dit.out_dim, self.vae.z_dim
            ));
        }
        if self.local_attn_size < self.kv_cache_num_frames + self.num_frame_per_block {
            return invalid(format!(
                "local_attn_size {} is less than kv_cache_num_frames {} + num_frame_per_block {}",
                self.local_attn_size, self.kv_cache_num_frames, self.num_frame_per_block
            ));
        }
        let step = self.vae.spatial_factor() * dit.patch_size[1].max(dit.patch_size[2]);
        for (height, width) in &self.sizes {
            if i64::from(*height) % step != 0 || i64::from(*width) % step != 0 || *height == 0 || *width == 0
            {
                return invalid(format!("size {height}x{width} is not a positive multiple of {step}"));
            }
        }
        if self.sizes.is_empty() {
            return invalid("sizes is empty".into());
        }
        Ok(())
    }
}
