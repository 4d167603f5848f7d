use std::ffi::c_void;
use std::ptr;

use tch::Device;

use crate::ExtraError;
use crate::ffi::{check, index, torch_extra_current_stream};

/// A `CUstream`, which is null for the default one. It belongs to libtorch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub *mut c_void);

/// The stream that this thread's tensor operations on `device` run on.
///
/// # Errors
/// For a device other than `cuda:N`, or what libtorch says.
pub fn current_stream(device: Device) -> Result<Stream, ExtraError> {
    let (call, mut stream) = ("current stream", ptr::null_mut());
    let device = index(call, device)?;
    // SAFETY: the call writes to `stream` alone.
    unsafe { check(call, torch_extra_current_stream(device, &raw mut stream)) }?;
    Ok(Stream(stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_no_stream_and_a_gpu_that_is_not_there_says_so() {
        let error = current_stream(Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("only cuda:N is allowed"), "{error}");
        assert_eq!(current_stream(Device::Cuda(0)).unwrap_err().call, "current stream");
    }
}
