//! What a cell serves: frozen for its lifetime, told in HELLO and status.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Reason};
use crate::ids::WorldSize;
use crate::params::Parameters;
use crate::tensor::Dtype;

/// Frame size in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Size {
    pub width: u32,
    pub height: u32,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// How the generator is split over the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TpPlan {
    /// Text encoder and VAE stay on stage 0; the generator is sharded by heads and features.
    #[serde(rename = "v1_generator_only")]
    V1GeneratorOnly,
    /// World size 1: generator and stage 0 on one device.
    #[serde(rename = "v0_full_pipeline")]
    V0FullPipeline,
}

impl TpPlan {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1GeneratorOnly => "v1_generator_only",
            Self::V0FullPipeline => "v0_full_pipeline",
        }
    }
}

impl std::str::FromStr for TpPlan {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::V1GeneratorOnly, Self::V0FullPipeline].into_iter().find(|p| p.as_str() == text).ok_or_else(
            || {
                Error::new(
                    Reason::BadField,
                    format!("tp_plan {text:?}: v1_generator_only or v0_full_pipeline is allowed"),
                )
            },
        )
    }
}

/// The facts about a loaded model that envelopes are checked against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// `tiny`, `wan-1.3b`, ...
    pub name: String,
    /// Identity of configuration and weights; equal on every rank.
    pub fingerprint: String,
    /// Sizes a session may be created with; the first is the default.
    pub sizes: Vec<Size>,
    /// What the link carries.
    pub dtype: Dtype,
    /// Channels of a latent frame.
    pub latent_channels: u32,
    /// Pixels per latent row or column.
    pub spatial_stride: u32,
    /// Latent frames in a chunk.
    pub frames_per_chunk: u32,
    /// Latent frames in a recompute context.
    pub context_frames: u32,
    /// Rows and width of the conditioning embedding.
    pub text_len: u32,
    pub text_dim: u32,
    /// Whether every chunk but the first of a history rebuilds the KV cache from context frames.
    pub recompute: bool,
    /// Generator forwards of a chunk besides one per denoising step and the recompute pass (a Self-Forcing clean pass).
    pub extra_calls: u32,
    pub default_steps: Vec<u32>,
    pub default_attention_bias: f32,
    pub world_sizes: Vec<WorldSize>,
    /// Prompts that show what the model knows, for people who do not know it yet.
    #[serde(default)]
    pub examples: Vec<String>,
}

/// A step list may hold this many steps.
pub const MAX_STEPS: usize = 16;

impl ModelInfo {
    #[must_use]
    pub fn default_size(&self) -> Option<Size> {
        self.sizes.first().copied()
    }

    /// # Errors
    /// `unsupported_size`, listing the sizes served.
    pub fn check_size(&self, size: Size) -> Result<(), Error> {
        if self.sizes.contains(&size) {
            return Ok(());
        }
        let served: Vec<String> = self.sizes.iter().map(Size::to_string).collect();
        Err(Error::new(
            Reason::UnsupportedSize,
            format!("size {size} (width x height): this cell serves {}", served.join(", ")),
        ))
    }

    /// # Errors
    /// `unsupported_parameter` for what this model cannot do, with the key's name.
    pub fn check_parameters(&self, parameters: &Parameters) -> Result<(), Error> {
        parameters.kv_cache_attention_bias.map_or(Ok(()), |bias| self.check_attention_bias(bias))
    }

    /// # Errors
    /// `unsupported_parameter` for a bias on a model whose cache is not rebuilt with it.
    pub fn check_attention_bias(&self, bias: f32) -> Result<(), Error> {
        if self.recompute || bias >= 1.0 {
            return Ok(());
        }
        let text = format!("kv_cache_attention_bias is {bias}: {} allows 1 only", self.name);
        Err(Error::new(Reason::UnsupportedParameter, text))
    }

    /// `[1, frames, channels, height/8, width/8]`.
    #[must_use]
    pub fn latent_shape(&self, size: Size, frames: u32) -> [i64; 5] {
        let rows = size.height / self.spatial_stride;
        let columns = size.width / self.spatial_stride;
        [1, i64::from(frames), i64::from(self.latent_channels), i64::from(rows), i64::from(columns)]
    }

    /// `[1, text_len, text_dim]`.
    #[must_use]
    pub fn conditioning_shape(&self) -> [i64; 3] {
        [1, i64::from(self.text_len), i64::from(self.text_dim)]
    }

    /// Generator forwards a chunk takes.
    #[must_use]
    pub fn expected_calls(&self, steps: usize, recompute: bool) -> u32 {
        u32::try_from(steps).unwrap_or(u32::MAX) + u32::from(recompute) + self.extra_calls
    }
}

/// # Errors
/// `bad_steps` unless 1 to [`MAX_STEPS`] steps from 1 to 1000 descend strictly.
pub fn check_steps(steps: &[u32]) -> Result<(), Error> {
    let descending = steps.windows(2).all(|pair| pair[0] > pair[1]);
    let in_range = steps.iter().all(|step| (1..=1000).contains(step));
    if steps.is_empty() || steps.len() > MAX_STEPS || !descending || !in_range {
        return Err(Error::new(
            Reason::BadSteps,
            format!(
                "denoising steps {steps:?}: 1 to {MAX_STEPS} strictly descending steps from 1 to 1000 are allowed"
            ),
        ));
    }
    Ok(())
}
