//! RMS normalisation over the channels of each pixel: `x / max(|x|, 1e-12) * sqrt(C) * gamma`.

use super::loader::Loader;
use crate::weights::WeightsError;
use tch::{Kind, Tensor};

#[derive(Debug)]
pub(super) struct RmsNorm {
    /// `gamma * sqrt(C)`, `[1, C, 1, 1]`.
    scale: Tensor,
}

impl RmsNorm {
    /// `shape` is that of the checkpoint: `[C, 1, 1, 1]` or `[C, 1, 1]`.
    pub(super) fn load(l: &Loader, name: &str, shape: &[i64]) -> Result<Self, WeightsError> {
        let channels = shape[0];
        let gamma = l.tensor(name, shape)?.reshape([1, channels, 1, 1]);
        Ok(Self { scale: gamma * (channels as f64).sqrt() })
    }

    /// `[T, C, H, W]` -> the same shape.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        // Squares and their sum, because the library's norm over a dimension that is not the last is slow on a CPU.
        let mut norm =
            x.square().sum_dim_intlist([1].as_slice(), true, None::<Kind>).sqrt_().clamp_min_(1e-12);
        (x * norm.reciprocal_()).g_mul_(&self.scale)
    }

    /// [`forward`](Self::forward), then SiLU.
    pub(super) fn forward_silu(&self, x: &Tensor) -> Tensor {
        self.forward(x).silu_()
    }
}
