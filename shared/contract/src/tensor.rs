//! Tensors are named in messages and carried by a link; no tensor is ever inside a message.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Reason};
use crate::ids::{Generation, LinkSlot};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    F32,
    Bf16,
}

impl Dtype {
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorKey {
    /// `[1, frames, channels, height/8, width/8]`: the noise to denoise. Always present in INFER.
    LatentsIn,
    /// `[1, text_len, text_dim]`, rows past the prompt zero. Present when its digest is new to the mesh.
    ConditioningEmbeds,
    /// `[1, kv_cache_frames, channels, height/8, width/8]`. Present exactly when `do_kv_recompute`.
    ContextFrames,
    /// Same shape as `LatentsIn`: the denoised chunk.
    LatentsOut,
}

impl TensorKey {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LatentsIn => "latents_in",
            Self::ConditioningEmbeds => "conditioning_embeds",
            Self::ContextFrames => "context_frames",
            Self::LatentsOut => "latents_out",
        }
    }
}

/// Where a tensor lies in the link, and what it must look like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    pub key: TensorKey,
    pub dtype: Dtype,
    pub shape: Vec<i64>,
    pub slot: LinkSlot,
    pub byte_offset: u64,
    pub byte_len: u64,
    pub generation: Generation,
}

impl TensorSpec {
    /// # Errors
    /// `bad_dtype` or `bad_shape`, naming key, value and what the call implies.
    pub fn expect(&self, dtype: Dtype, shape: &[i64]) -> Result<(), Error> {
        let key = self.key.as_str();
        if self.dtype != dtype {
            let (got, want) = (self.dtype.as_str(), dtype.as_str());
            return Err(Error::new(Reason::BadDtype, format!("{key} has dtype {got}: {want} is expected")));
        }
        if self.shape != shape {
            return Err(Error::new(
                Reason::BadShape,
                format!("{key} has shape {:?}: {shape:?} is expected", self.shape),
            ));
        }
        let bytes = shape.iter().product::<i64>().unsigned_abs() * dtype.bytes() as u64;
        if self.byte_len != bytes {
            return Err(Error::new(
                Reason::BadShape,
                format!("{key} has {} bytes: its shape {shape:?} takes {bytes}", self.byte_len),
            ));
        }
        Ok(())
    }
}
