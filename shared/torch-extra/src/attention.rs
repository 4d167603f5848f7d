use std::ffi::c_void;
use std::ptr;

use tch::Tensor;

use crate::ExtraError;
use crate::ffi::{check, pointer, torch_extra_cudnn_attention};

/// `softmax(q k^T / sqrt(d)) v` by cuDNN, of bf16 or f16 tensors `[B, H, N, d]`, `[B, H, M, d]` and `[B, H, M, d]` whose
/// last dimension is contiguous: `[B, H, N, d]` in the dtype of the queries, laid out as they are.
///
/// # Errors
/// Without CUDA or cuDNN, or for tensors that cuDNN does not take.
pub fn cudnn_attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor, ExtraError> {
    let (out, _) = attend(q, k, v, false)?;
    // SAFETY: a tensor that was made for the caller.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

/// As [`cudnn_attention`], and the logarithm of the sum of exponentials of each query's scaled scores, `[B, H, N, 1]` f32.
///
/// # Errors
/// As for [`cudnn_attention`].
pub fn cudnn_attention_with_lse(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor), ExtraError> {
    let (out, lse) = attend(q, k, v, true)?;
    // SAFETY: two tensors that were made for the caller.
    Ok(unsafe { (Tensor::from_ptr(out.cast()), Tensor::from_ptr(lse.cast())) })
}

/// Output and, where it is asked for, log-sum-exp.
fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    with_lse: bool,
) -> Result<(*mut c_void, *mut c_void), ExtraError> {
    let (mut out, mut lse) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the tensors live through the call, and it writes to `out` and `lse` alone.
    unsafe {
        let said = torch_extra_cudnn_attention(
            pointer(q),
            pointer(k),
            pointer(v),
            with_lse,
            &raw mut out,
            &raw mut lse,
        );
        check("cudnn attention", said)?;
    }
    Ok((out, lse))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn what_libtorch_throws_comes_back_as_an_error() {
        let x = Tensor::zeros([1, 2, 3, 8], (Kind::Float, Device::Cpu));
        let errors =
            [cudnn_attention(&x, &x, &x).unwrap_err(), cudnn_attention_with_lse(&x, &x, &x).unwrap_err()];
        for error in errors {
            assert_eq!(error.call, "cudnn attention");
            assert!(error.what.contains("_scaled_dot_product_cudnn_attention"), "{error}");
            assert!(!error.what.contains("frame #"), "{error}");
        }
    }
}
