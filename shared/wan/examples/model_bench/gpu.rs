//! What a line says of the device.

use std::time::Instant;

use cudarc::driver::result::{device, mem_get_info};
use serde_json::{Value, json};
use tch::Device;

use crate::Failure;

/// Waits until the device has done all it was given.
pub(crate) fn finish(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// Seconds that `work` takes on the device.
pub(crate) fn seconds<T>(
    device: Device,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<(f64, T), Failure> {
    finish(device);
    let started = Instant::now();
    let result = work()?;
    finish(device);
    Ok((started.elapsed().as_secs_f64(), result))
}

pub(crate) fn name(on: Device) -> Result<String, Failure> {
    match on {
        Device::Cuda(index) => {
            let device = device::get(i32::try_from(index)?).map_err(|e| format!("{e:?}"))?;
            Ok(device::get_name(device).map_err(|e| format!("{e:?}"))?)
        }
        _ => Ok(format!("cpu, {} threads", tch::get_num_threads())),
    }
}

/// MiB of the device that are in use, by this process and others: libtorch keeps what it had, so at the end of a run it is
/// the most that was needed.
pub(crate) fn used_memory(on: Device) -> Result<Value, Failure> {
    if !on.is_cuda() {
        return Ok(Value::Null);
    }
    let (free, total) = mem_get_info().map_err(|e| format!("{e:?}"))?;
    Ok(json!((total - free) >> 20))
}
