//! The models of stage 0, shared by all sessions. One operation at a time: they share a device, and the tensors of
//! libtorch may be used by one thread at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use contract::error::{Error, Reason};
use tch::Tensor;
use wan::text::TextEncoder;
use wan::vae::{DecoderStream, Vae};

struct Models {
    text: TextEncoder,
    vae: Vae,
}

#[derive(Clone)]
pub(crate) struct Studio(Arc<Mutex<Models>>);

impl Studio {
    pub(crate) fn new(text: TextEncoder, vae: Vae) -> Self {
        Self(Arc::new(Mutex::new(Models { text, vae })))
    }

    /// An operation takes milliseconds to a few hundred of them, and nobody holds this longer.
    fn lock(&self) -> MutexGuard<'_, Models> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `[1, text_len, text_dim]`, rows past the prompt zero.
    ///
    /// # Errors
    /// `internal`: the tokenizer or the model cannot.
    pub(crate) fn encode_text(&self, text: &str) -> Result<Tensor, Error> {
        let encoded = self.lock().text.encode(text);
        encoded.map_err(|e| {
            Error::new(Reason::Internal, "the prompt could not be encoded").detail(e.to_string())
        })
    }

    /// Latents `[1, T, C, h, w]` -> pixels `[1, F, 3, H, W]` in [-1, 1].
    pub(crate) fn decode(&self, stream: &mut DecoderStream, latents: &Tensor) -> Tensor {
        self.lock().vae.decode(stream, latents)
    }

    /// One frame `[1, 1, 3, H, W]` in [-1, 1] -> latent `[1, 1, C, h, w]`, without any memory of other frames.
    pub(crate) fn encode_frame(&self, frame: &Tensor) -> Tensor {
        self.lock().vae.encode_frame(&frame.transpose(1, 2))
    }
}
