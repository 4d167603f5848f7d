//! Which implementation attention and elementwise work have on a model's device. It is chosen once; layers ask for the
//! work and do not see the choice.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::DitError;
use super::fused::{Fused, Part};
use super::mask::Mask;
use crate::config::DitConfig;

/// Tokens of the attention that cuDNN is tried with: neither count is a multiple of anything.
const TRIED: (i64, i64) = (67, 131);

/// Who computes attention without a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// `scaled_dot_product_attention`, whatever it chooses.
    Torch,
    /// cuDNN, whose attention is the fastest of those that libtorch has on Hopper.
    Cudnn,
}

/// The implementations in effect.
#[derive(Clone, Debug)]
pub struct Ops {
    attention: Attention,
    fused: Option<Arc<Fused>>,
    /// GELU in the epilogue of a product, in the tanh form on a GPU alone.
    gelu_in_product: bool,
    missing: Vec<String>,
}

impl Ops {
    /// Tensor operations alone: what a CPU has, and a GPU in f32.
    pub const TENSOR: Self =
        Self { attention: Attention::Torch, fused: None, gelu_in_product: false, missing: Vec::new() };

    /// The fastest that there are for a model on `device` in dtype `kind`. On a GPU the first call of a process compiles
    /// kernels and tries cuDNN; what is not to be had is in [`Self::missing`].
    pub fn choose(config: &DitConfig, device: Device, kind: Kind) -> Self {
        if !device.is_cuda() || !matches!(kind, Kind::BFloat16 | Kind::Half) {
            return Self::TENSOR;
        }
        let mut ops = Self::TENSOR;
        match try_cudnn(config, device, kind) {
            Ok(()) => ops.attention = Attention::Cudnn,
            Err(error) => ops.missing.push(format!("attention by cuDNN: {error}")),
        }
        if kind != Kind::BFloat16 {
            return ops;
        }
        ops.gelu_in_product = true;
        let fused = if Fused::fits(config) {
            Fused::on(device)
        } else {
            Err(format!("dim {} in heads of {} does not fit them", config.dim, config.head_dim()))
        };
        match fused {
            Ok(fused) => ops.fused = Some(fused),
            Err(error) => ops.missing.push(format!("fused kernels: {error}")),
        }
        ops
    }

    pub fn attention(&self) -> Attention {
        self.attention
    }

    /// The kernels, where they are used.
    pub fn fused(&self) -> Option<&Fused> {
        self.fused.as_deref()
    }

    pub(super) fn gelu_in_product(&self) -> bool {
        self.gelu_in_product
    }

    /// What this device should have and does not, each with the reason.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// `cudnn` or `torch-eager`.
    pub fn attention_name(&self) -> &'static str {
        match self.attention {
            Attention::Torch => "torch-eager",
            Attention::Cudnn => "cudnn",
        }
    }

    /// `fused` or `torch-eager`.
    pub fn elementwise_name(&self) -> &'static str {
        if self.fused.is_some() { "fused" } else { "torch-eager" }
    }

    /// `softmax(q k^T / sqrt(d) + mask) v` of `[1, n, heads, d]` tensors, as `[1, n, heads * d]`.
    ///
    /// # Errors
    /// The shapes do not fit; the device has no memory.
    pub fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: Option<&Mask>,
    ) -> Result<Tensor, DitError> {
        let by_head = |x: &Tensor| x.f_transpose(1, 2);
        let (q, k, v) = (by_head(q)?, by_head(k)?, by_head(v)?);
        let out = match (self.attention, mask, self.fused()) {
            (Attention::Cudnn, None, _) => by_head(&torch_extra::cudnn_attention(&q, &k, &v)?)?,
            (Attention::Cudnn, Some(Mask::Bias { keys, ln_bias, .. }), Some(fused)) => {
                in_parts(fused, [&q, &k, &v], keys, *ln_bias)?
            }
            _ => {
                let mask = mask.map(Mask::scores);
                by_head(&Tensor::f_scaled_dot_product_attention(&q, &k, &v, mask, 0.0, false, None, false)?)?
            }
        };
        Ok(out.f_flatten(2, 3)?)
    }
}

/// Attention `[1, n, heads, d]` of `[1, heads, n, d]` tensors with a bias on some keys, between others: cuDNN takes no mask
/// at its full speed, so each of the three sets of keys is attended to by itself.
fn in_parts(
    fused: &Fused,
    [q, k, v]: [&Tensor; 3],
    biased: &Range<i64>,
    ln_bias: f64,
) -> Result<Tensor, DitError> {
    let part = |keys: Range<i64>| -> Result<(Tensor, Tensor), DitError> {
        let of = |x: &Tensor| x.f_narrow(2, keys.start, keys.end - keys.start);
        let (out, lse) = torch_extra::cudnn_attention_with_lse(q, &of(k)?, &of(v)?)?;
        Ok((out.f_transpose(1, 2)?.f_contiguous()?, lse.f_contiguous()?))
    };
    let (before, biased, after) =
        (part(0..biased.start)?, part(biased.clone())?, part(biased.end..k.size()[2])?);
    let out = before.0.f_empty_like()?;
    let parts = [&before, &biased, &after].map(|(out, lse)| Part { out, lse });
    fused.merge(parts, ln_bias, &out)?;
    Ok(out)
}

/// Equal exactly where ranks compute alike.
impl fmt::Display for Ops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} attention, {} elementwise", self.attention_name(), self.elementwise_name())
    }
}

fn try_cudnn(config: &DitConfig, device: Device, kind: Kind) -> Result<(), DitError> {
    let _guard = tch::no_grad_guard();
    let ops = Ops { attention: Attention::Cudnn, ..Ops::TENSOR };
    let tokens = |n: i64| Tensor::f_ones([1, n, config.num_heads, config.head_dim()], (kind, device));
    let (q, k) = (tokens(TRIED.0)?, tokens(TRIED.1)?);
    // Weights that add up to one, of values that are all one.
    let out = ops.attend(&q, &k, &k, None)?;
    let worst = out.f_to_kind(Kind::Float)?.f_sub_scalar(1.0)?.f_abs()?.f_max()?.f_double_value(&[])?;
    if worst < 0.01 {
        return Ok(());
    }
    let (expected, found) = ("ones".to_owned(), format!("values {worst} away"));
    Err(DitError::Input { what: "the average of ones", expected, found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    #[test]
    fn a_cpu_has_tensor_operations_in_every_dtype_and_misses_nothing() {
        let config = ModelConfig::named("tiny").unwrap().dit;
        for kind in [Kind::Float, Kind::BFloat16] {
            let ops = Ops::choose(&config, Device::Cpu, kind);
            assert_eq!(ops.to_string(), "torch-eager attention, torch-eager elementwise");
            assert!(ops.fused().is_none() && !ops.gelu_in_product() && ops.missing().is_empty());
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_leaves_tensor_operations_and_says_why() {
        let config = ModelConfig::named("tiny").unwrap().dit;
        let ops = Ops::choose(&config, Device::Cuda(0), Kind::BFloat16);
        assert_eq!(ops.attention(), Attention::Torch);
        let [attention, fused] = ops.missing() else { panic!("{:?}", ops.missing()) };
        assert!(attention.starts_with("attention by cuDNN: "), "{attention}");
        assert!(fused.starts_with("fused kernels: "), "{fused}");
    }
}
