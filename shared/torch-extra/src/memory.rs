use tch::Device;

use crate::ExtraError;
use crate::ffi::{check, index, torch_extra_memory};

/// Bytes of one device that this process has through libtorch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In tensors.
    pub allocated: i64,
    /// From the driver, in tensors or kept for the next ones.
    pub reserved: i64,
    pub peak_allocated: i64,
    pub peak_reserved: i64,
}

/// What libtorch's allocator counts; `None` on a CPU, where it does not.
///
/// # Errors
/// Without CUDA, or without such a device.
pub fn memory(device: Device) -> Result<Option<Memory>, ExtraError> {
    if !device.is_cuda() {
        return Ok(None);
    }
    let call = "memory statistics";
    let (device, mut bytes) = (index(call, device)?, [0; 4]);
    // SAFETY: the call writes four numbers.
    unsafe { check(call, torch_extra_memory(device, bytes.as_mut_ptr())) }?;
    let [allocated, reserved, peak_allocated, peak_reserved] = bytes;
    Ok(Some(Memory { allocated, reserved, peak_allocated, peak_reserved }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_no_statistics_and_a_gpu_that_is_not_there_is_an_error() {
        assert_eq!(memory(Device::Cpu), Ok(None));
        assert_eq!(memory(Device::Cuda(0)).unwrap_err().call, "memory statistics");
    }
}
