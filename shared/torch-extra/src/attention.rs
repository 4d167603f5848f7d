use std::ptr;

use tch::Tensor;

use crate::ExtraError;
use crate::ffi::{check, pointer, torch_extra_cudnn_attention};

/// What attention gives.
#[derive(Debug)]
pub struct Attended {
    /// `[B, H, N, d]`, in the dtype of the queries and laid out as they are.
    pub out: Tensor,
    /// `[B, H, N, 1]`, f32: logarithm of the sum of exponentials of each query's scaled scores.
    pub lse: Option<Tensor>,
}

/// `softmax(q k^T / sqrt(d)) v` by cuDNN, of bf16 or f16 tensors `[B, H, N, d]`, `[B, H, M, d]` and `[B, H, M, d]` whose
/// last dimension is contiguous.
///
/// # Errors
/// Without CUDA or cuDNN, or for tensors that cuDNN does not take.
pub fn cudnn_attention(q: &Tensor, k: &Tensor, v: &Tensor, with_lse: bool) -> Result<Attended, ExtraError> {
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
    // SAFETY: each is a tensor that was made for the caller.
    let owned = |made: *mut std::ffi::c_void| unsafe { Tensor::from_ptr(made.cast()) };
    Ok(Attended { out: owned(out), lse: with_lse.then(|| owned(lse)) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn what_libtorch_throws_comes_back_as_an_error() {
        let x = Tensor::zeros([1, 2, 3, 8], (Kind::Float, Device::Cpu));
        for with_lse in [false, true] {
            let error = cudnn_attention(&x, &x, &x, with_lse).unwrap_err();
            assert_eq!(error.call, "cudnn attention");
            assert!(error.what.contains("_scaled_dot_product_cudnn_attention"), "{error}");
            assert!(!error.what.contains("frame #"), "{error}");
        }
    }
}
