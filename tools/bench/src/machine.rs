//! The machine a measurement was made on: its names, its clock, its memory.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use cudarc::driver::CudaContext;
use serde_json::{Value, json};
use system_tests::leftovers;
use tch::Device;
use uuid::Uuid;

/// Waits until the device has done all it was given.
fn finish(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// Milliseconds that `work` takes on the device.
pub(crate) fn ms<T>(device: Device, work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    finish(device);
    let started = Instant::now();
    let result = work()?;
    finish(device);
    Ok((started.elapsed().as_secs_f64() * 1e3, result))
}

/// The device as an option names it, and what both processors call themselves.
pub(crate) fn conditions(device: Device) -> Result<Value> {
    let gpu = match device {
        Device::Cuda(index) => Some(context(index)?.name()?),
        _ => None,
    };
    Ok(json!({
        "device": name(device), "gpu": gpu, "cpu": cpu(),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
    }))
}

/// As an option names it.
pub(crate) fn name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

fn cpu() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(": ").map(|(_, name)| name.to_owned())
}

/// The context that libtorch uses on the device.
fn context(index: usize) -> Result<Arc<CudaContext>> {
    CudaContext::new(index).map_err(|error| anyhow::anyhow!("cuda:{index}: {error:?}"))
}

/// The name that the driver's other libraries know a device by, whatever index it has here.
pub(crate) fn uuid(index: usize) -> Result<String> {
    let uuid = context(index)?.uuid().map_err(|error| anyhow::anyhow!("cuda:{index}: {error:?}"))?;
    let bytes = uuid.bytes.map(|byte| byte as u8);
    Ok(format!("GPU-{}", Uuid::from_bytes(bytes)))
}

/// MiB of the device that are in use, by this process and others. libtorch keeps what it had, so at the end of a run it
/// is the most that was needed. Null on a CPU.
pub(crate) fn device_mib(device: Device) -> Result<Option<usize>> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let (free, total) =
        context(index)?.mem_get_info().map_err(|error| anyhow::anyhow!("cuda:{index}: {error:?}"))?;
    Ok(Some((total - free) >> 20))
}

/// In MiB: device memory in use, the most that this process had in tensors and from the driver for them, and the most that
/// it had resident.
pub(crate) fn memory(device: Device) -> Result<Value> {
    let host = leftovers::peak_resident_kib(std::process::id()) / 1024;
    let torch = torch_extra::memory(device)?;
    Ok(json!({
        "device_memory_mib": device_mib(device)?, "host_peak_mib": host,
        "tensors_peak_mib": torch.map(|memory| memory.peak_allocated >> 20),
        "reserved_peak_mib": torch.map(|memory| memory.peak_reserved >> 20),
    }))
}
