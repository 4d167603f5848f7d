//! RMS normalisation over the channels of each pixel: `x / max(|x|, 1e-12) * sqrt(C) * gamma`.

use super::fused::{Fused, NormSilu};
use super::loader::Loader;
use crate::weights::WeightsError;
use std::sync::Arc;
use tch::Tensor;

#[derive(Debug)]
pub(super) struct RmsNorm {
    /// `gamma * sqrt(C)`, `[C]`.
    scale: Tensor,
    fused: Option<Arc<Fused>>,
}

impl RmsNorm {
    /// `shape` is that of the checkpoint: `[C, 1, 1, 1]` or `[C, 1, 1]`.
    pub(super) fn load(l: &Loader, name: &str, shape: &[i64]) -> Result<Self, WeightsError> {
        let channels = shape[0];
        let gamma = l.tensor(name, shape)?.reshape([channels]);
        Ok(Self { scale: gamma * (channels as f64).sqrt(), fused: l.fused(channels) })
    }

    /// `[T, H, W, C]` -> the same shape.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let out = x.empty_like();
        self.write(x, &out);
        out
    }

    /// SiLU of the norm of `x`, `[T, H, W, C]`, written to `out` of the same shape. `bias` `[C]` is added to `x` before,
    /// where kernels are used.
    pub(super) fn write_silu(&self, x: &Tensor, bias: Option<&Tensor>, out: &Tensor) {
        match &self.fused {
            Some(fused) => fused
                .norm_silu(NormSilu { input: x, bias, scale: &self.scale, output: out })
                .unwrap_or_else(|error| panic!("norm: {error}")),
            None => {
                self.write(x, out);
                let _ = out.shallow_clone().silu_();
            }
        }
    }

    fn write(&self, x: &Tensor, out: &Tensor) {
        let mut norm = x.norm_scalaropt_dim(2.0, [-1].as_slice(), true).clamp_min_(1e-12);
        let _ = x.multiply_out(out, &norm.reciprocal_()).g_mul_(&self.scale);
    }
}
