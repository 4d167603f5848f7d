//! What a session needs to go on after its stage0 is gone: written after each chunk, read by whoever makes its next life.
//!
//! Not a message: it lies in a bucket, cut into parts, and may be larger than any message ([`MAX_BYTES`]).

use serde::{Deserialize, Serialize};

use crate::error::{Error, Reason};
use crate::ids::{CacheEpoch, Digest, Incarnation, SessionId};
use crate::model::Size;
use crate::params::{Interpolation, Parameters, Prompt};
use crate::tensor::Dtype;

/// Version of [`ContinuationV1`]. A state of another one is not used: its session starts anew.
pub const CONTINUATION_VERSION: u16 = 1;
/// No state is larger. At 480x832 in f32 one has 1.6 MB.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;
/// A state that nobody wrote again for this long is gone.
pub const LIFETIME_S: u64 = 600;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContinuationV1 {
    pub version: u16,
    pub session: SessionId,
    /// Of the life that wrote it.
    pub incarnation: Incarnation,
    /// [`crate::model::ModelInfo::fingerprint`]: latents of another model mean nothing.
    pub model: String,
    pub size: Size,
    pub cache_epoch: CacheEpoch,
    /// Latent frames before the next chunk, in its history.
    pub current_start_frame: u64,
    /// Highest update number that is merged into what follows.
    pub update: u64,
    /// Everything in force but the prompts. No field that a session has a value for is absent.
    pub settings: Parameters,
    pub conditioning: StoredConditioning,
    /// Absent where a history cannot be continued: for the first chunk of one, and for models that keep their cache.
    pub frames: Option<StoredFrames>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredConditioning {
    /// Where the conditioning is or, in a transition, is heading.
    pub prompts: Vec<Prompt>,
    pub interpolation: Interpolation,
    pub transition: Option<StoredTransition>,
}

/// A walk between two embeddings. Its target is what the prompts encode to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredTransition {
    /// `[1, text_len, text_dim]`
    pub source: StoredTensor,
    pub steps: u32,
    /// Steps taken so far.
    pub taken: u32,
    pub interpolation: Interpolation,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredFrames {
    /// `[1, 1, C, h, w]`: the head of the next call's context frames.
    pub head: StoredTensor,
    /// `[1, frames_per_chunk, C, h, w]`: the last chunk. Its last latents are the rest of the context, and all of them
    /// warm the VAE's stream, whose own caches are far too large to keep.
    pub latents: StoredTensor,
}

/// Little-endian values in row-major order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTensor {
    pub dtype: Dtype,
    pub shape: Vec<i64>,
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

impl StoredTensor {
    /// # Errors
    /// `bad_shape` unless the data is exactly what shape and dtype say.
    pub fn check(&self) -> Result<(), Error> {
        let mut dims = self.shape.iter().map(|n| usize::try_from(*n).ok());
        let count = dims.try_fold(1usize, |product, n| product.checked_mul(n?));
        let bytes = count.and_then(|count| count.checked_mul(self.dtype.bytes()));
        if bytes == Some(self.data.len()) {
            return Ok(());
        }
        let (shape, len) = (&self.shape, self.data.len());
        Err(Error::new(Reason::BadShape, format!("a stored tensor of shape {shape:?} has {len} bytes")))
    }
}

impl ContinuationV1 {
    /// # Errors
    /// `payload_too_large` above [`MAX_BYTES`]; `internal` if it cannot be encoded.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let bytes = rmp_serde::to_vec_named(self).map_err(|e| {
            Error::new(Reason::Internal, "a state could not be encoded").detail(e.to_string())
        })?;
        check_size(bytes.len())?;
        Ok(bytes)
    }

    /// # Errors
    /// `unsupported_version`, `malformed`, `payload_too_large`, or `bad_shape` for a tensor that is cut short.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u16,
        }
        check_size(bytes.len())?;
        let malformed = |e: rmp_serde::decode::Error| {
            Error::new(Reason::Malformed, format!("malformed continuation state: {e}"))
        };
        let Versioned { version } = rmp_serde::from_slice(bytes).map_err(malformed)?;
        if version != CONTINUATION_VERSION {
            let text = format!("continuation state version {version}: {CONTINUATION_VERSION} is read here");
            return Err(Error::new(Reason::UnsupportedVersion, text));
        }
        let state: Self = rmp_serde::from_slice(bytes).map_err(malformed)?;
        let frames = state.frames.iter().flat_map(|frames| [&frames.head, &frames.latents]);
        let source = state.conditioning.transition.iter().map(|transition| &transition.source);
        frames.chain(source).try_for_each(StoredTensor::check)?;
        Ok(state)
    }
}

fn check_size(len: usize) -> Result<(), Error> {
    if len > MAX_BYTES {
        let text = format!("a continuation state of {len} bytes: {MAX_BYTES} are allowed");
        return Err(Error::new(Reason::PayloadTooLarge, text));
    }
    Ok(())
}

/// The one key of a session that is written by compare-and-set: which life may write, and where its newest state lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContinuationHead {
    /// Raised by each life before it does anything; an older one can write nothing that is read from then on.
    pub incarnation: Incarnation,
    /// Whoever can show what this is the digest of may make the next life.
    pub resume: Digest,
    pub state: Option<StatePlace>,
}

/// The parts of one state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatePlace {
    /// The life that wrote it: parts of different lives never share a key.
    pub incarnation: Incarnation,
    /// States are written in turn to two sets of keys, so that the one in force is never overwritten.
    pub set: u8,
    pub parts: u32,
    /// Of all parts together.
    pub digest: Digest,
}
