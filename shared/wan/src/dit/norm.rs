//! Layer norm, and the RMS norm over a width that is split between ranks.

use tch::{Kind, TchError, Tensor};

use super::fused::{Fused, NormRotate};
use super::{DitError, Tp};

/// Layer norm over the last dimension, without or with scale and shift.
pub(super) fn layer_norm(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
) -> Result<Tensor, TchError> {
    let width = x.size().last().copied().unwrap_or(0);
    x.f_layer_norm([width], affine.map(|a| a.0), affine.map(|a| a.1), eps, true)
}

/// Sum of squares over the last dimension, f32, contiguous: this rank's contribution to an RMS over the full width.
///
/// # Errors
/// The device has no memory for it.
pub fn sum_of_squares(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_to_kind(Kind::Float)?.f_square()?.f_sum_dim_intlist([-1_i64].as_slice(), false, Kind::Float)
}

/// RMS norms of several projections at once, whose width is split over the ranks with whole heads on each.
#[derive(Debug)]
pub struct ShardedRmsNorm {
    /// `[P, dim / world]`, one row for each projection.
    weight: Tensor,
    /// Width over all ranks.
    dim: i64,
    eps: f64,
}

impl ShardedRmsNorm {
    pub(super) fn new(weights: &[Tensor], dim: i64, eps: f64) -> Result<Self, TchError> {
        Ok(Self { weight: Tensor::f_stack(weights, 0)?, dim, eps })
    }

    /// Normalises `x` `[..., P, dim / world]` by the sums over all ranks; one all-reduce of `[..., P]`. Statistics and
    /// scaling are f32; the result is cast back before the weight is applied, as the reference does.
    ///
    /// # Errors
    /// A rank is gone, out of step or late.
    pub fn forward(&self, x: &Tensor, tp: &Tp) -> Result<Tensor, DitError> {
        if tp.world() == 1 && x.device().is_cuda() {
            // The same in one kernel, where the steps below are seven passes over the tokens.
            return Ok(x.f_rms_norm([self.dim], None::<Tensor>, self.eps)?.f_mul_(&self.weight)?);
        }
        let mut sums = sum_of_squares(x)?;
        tp.sum(&mut sums)?;
        Ok(self.apply(x, &sums)?)
    }

    /// As [`Self::forward`] in f32 throughout, of the first `P` of the parts that a row of `input` `[1, N, P' * dim / world]`
    /// has, into `outputs` `[1, N, heads, d]`; they are turned by `rotations`, if any. Parts after them are copied.
    ///
    /// # Errors
    /// A rank is gone, out of step or late; the shapes do not fit.
    pub(super) fn forward_into(
        &self,
        fused: &Fused,
        input: &Tensor,
        rotations: Option<&Tensor>,
        outputs: &[&Tensor],
        tp: &Tp,
    ) -> Result<(), DitError> {
        let (parts, channels) = self.weight.size2()?;
        let sums = if tp.world() == 1 {
            None
        } else {
            let normed = input.f_narrow(2, 0, parts * channels)?.f_unflatten(2, [parts, channels])?;
            let mut sums = sum_of_squares(&normed)?;
            tp.sum(&mut sums)?;
            Some(sums)
        };
        let (sums, weight, dim, eps) = (sums.as_ref(), &self.weight, self.dim, self.eps);
        Ok(fused.norm_rotate(NormRotate { input, weight, sums, dim, eps, rotations, outputs })?)
    }

    /// Normalises `x` by sums of squares that are already over all ranks.
    pub(super) fn apply(&self, x: &Tensor, sums: &Tensor) -> Result<Tensor, TchError> {
        let scale =
            sums.f_div_scalar(self.dim as f64)?.f_add_scalar_(self.eps)?.f_rsqrt_()?.f_unsqueeze(-1)?;
        x.f_to_kind(Kind::Float)?.f_mul(&scale)?.f_to_kind(x.kind())?.f_mul_(&self.weight)
    }
}
