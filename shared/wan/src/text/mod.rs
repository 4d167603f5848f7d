//! Prompt to embedding: tokenizer and UMT5 encoder.

mod tokenizer;
mod umt5;

pub use tokenizer::TokenizerSource;
pub use umt5::{Umt5, relative_position_bucket};

use crate::config::Umt5Config;
use crate::weights::{TensorSource, WeightsError};
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};
use tokenizer::Tokenizer;

/// Why a prompt cannot be encoded, or an encoder not be made.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("tokenizer {path}: {what}")]
    Tokenizer { path: PathBuf, what: String },
    #[error("tokenizer: {what}")]
    Tokenize { what: String },
    #[error("tokenizer: id {id} is outside the encoder's vocabulary of {vocab}")]
    Vocabulary { id: i64, vocab: i64 },
}

/// Turns prompts into the rows that condition the diffusion transformer.
#[derive(Debug)]
pub struct TextEncoder {
    model: Umt5,
    tokenizer: Tokenizer,
    text_len: i64,
    vocab: i64,
}

impl TextEncoder {
    /// Reads weights (original Wan names) and tokenizer.
    ///
    /// # Errors
    /// A tensor is missing or has another shape; the tokenizer file cannot be read.
    pub fn load(
        config: &Umt5Config,
        source: &dyn TensorSource,
        tokenizer: TokenizerSource,
        device: Device,
        kind: Kind,
    ) -> Result<Self, TextError> {
        Ok(Self {
            model: Umt5::load(config, source, device, kind)?,
            tokenizer: Tokenizer::open(tokenizer)?,
            text_len: config.text_len,
            vocab: config.vocab,
        })
    }

    /// `[1, text_len, dim]` on the device and in the dtype of the weights; rows past the prompt are zero.
    ///
    /// Runs of white space count as one space, and none at the ends. A prompt of more than `text_len` tokens is
    /// truncated: its first `text_len - 1` tokens and the end mark stay.
    ///
    /// # Errors
    /// The tokenizer fails, or gives an id that the model has no embedding for.
    pub fn encode(&self, prompt: &str) -> Result<Tensor, TextError> {
        let ids = self.tokenizer.ids(prompt, usize::try_from(self.text_len).unwrap_or(0))?;
        if let Some(id) = ids.iter().find(|id| **id >= self.vocab) {
            return Err(TextError::Vocabulary { id: *id, vocab: self.vocab });
        }
        let ids = Tensor::from_slice(&ids).unsqueeze(0);
        // Padding is masked out of every attention and its rows are zeroed at the end, so it need not be computed.
        let rows = self.model.forward(&ids, &ids.ones_like());
        let missing = self.text_len - rows.size()[1];
        Ok(rows.constant_pad_nd([0, 0, 0, missing]))
    }
}
