use std::ptr;

use tch::Tensor;

use crate::ExtraError;
use crate::ffi::{check, pointer, torch_extra_pinned};

/// A copy of a CPU tensor in memory that a GPU can copy from while the host goes on.
///
/// # Errors
/// Without CUDA, for a tensor that is not on the CPU, or without memory.
pub fn pinned(tensor: &Tensor) -> Result<Tensor, ExtraError> {
    let mut out = ptr::null_mut();
    // SAFETY: the tensor lives through the call, which writes to `out` alone.
    unsafe { check("pin memory", torch_extra_pinned(pointer(tensor), &raw mut out)) }?;
    // SAFETY: a tensor that was made for the caller.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_it_says_what_is_missing() {
        let error = pinned(&Tensor::from_slice(&[1.0_f32])).unwrap_err();
        assert!(error.call == "pin memory" && !error.what.is_empty(), "{error}");
    }
}
