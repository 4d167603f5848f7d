use std::ptr;

use tch::Tensor;

use crate::ExtraError;
use crate::ffi::{check, pointer, torch_extra_linear_gelu};

/// `GELU(x W^T + b)` of rows `[N, I]`, a weight `[O, I]` and a bias `[O]`: `[N, O]`. On a GPU it is one product with GELU's tanh
/// form in its epilogue, on a CPU two steps with the erf form.
///
/// # Errors
/// The shapes do not fit; the device has no memory.
pub fn linear_gelu(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor, ExtraError> {
    let mut out = ptr::null_mut();
    // SAFETY: the tensors live through the call, which writes to `out` alone.
    unsafe {
        let said = torch_extra_linear_gelu(pointer(x), pointer(weight), pointer(bias), &raw mut out);
        check("linear and gelu", said)?;
    }
    // SAFETY: a tensor that was made for the caller.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn what_is_negative_is_not_cut_off() {
        tch::manual_seed(1);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (x, weight, bias) = (random(&[5, 8]), random(&[16, 8]), random(&[16]));
        let found = linear_gelu(&x, &weight, &bias).unwrap();
        let expected = x.linear(&weight, Some(&bias)).gelu("none");
        assert!(found.allclose(&expected, 1e-5, 1e-6, false));
        let error = linear_gelu(&x, &random(&[16, 9]), &bias).unwrap_err();
        assert_eq!(error.call, "linear and gelu");
    }
}
