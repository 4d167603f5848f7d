//! Whether a GPU ran as fast as it can while it was measured, or was held back by its power limit.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::{Device as Gpu, Nvml};
use serde_json::{Value, json};
use tch::Device;

use crate::machine;
use crate::statistics::Summary;

/// Between two samples.
const PAUSE: Duration = Duration::from_millis(50);
/// What the driver's library is called on a machine without its development files.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// What `work` gives, and the GPU's clock and power during it: null on a CPU, and why not where they cannot be had.
///
/// # Errors
/// Those of `work`.
pub(crate) fn during<T>(device: Device, work: impl FnOnce() -> Result<T>) -> Result<(T, Value)> {
    let Device::Cuda(index) = device else { return Ok((work()?, Value::Null)) };
    let uuid = machine::uuid(index)?;
    thread::scope(|scope| {
        let (done, ended) = sync_channel::<()>(1);
        let watching = scope.spawn(move || watch(&uuid, &ended));
        let result = work();
        drop(done);
        let seen = watching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((result?, seen.unwrap_or_else(|error| json!(format!("unknown: {error:#}")))))
    })
}

/// Samples until the other end is gone.
fn watch(uuid: &str, ended: &Receiver<()>) -> Result<Value> {
    let nvml = Nvml::builder().lib_path(LIBRARY.as_ref()).init().context(LIBRARY)?;
    let gpu = nvml.device_by_uuid(uuid).with_context(|| uuid.to_owned())?;
    let mut samples = Vec::new();
    while ended.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
        samples.push(Sample::of(&gpu)?);
    }
    let median = |of: fn(&Sample) -> f64| Summary::of(samples.iter().map(of)).median;
    Ok(json!({
        "sm_clock_mhz": median(|sample| sample.clock), "sm_clock_max_mhz": gpu.max_clock_info(Clock::SM)?,
        "watts": median(|sample| sample.watts), "watts_limit": f64::from(gpu.enforced_power_limit()?) / 1e3,
        "held_by_power_limit": share(samples.iter().map(|sample| sample.held)),
    }))
}

struct Sample {
    /// MHz of the multiprocessors.
    clock: f64,
    watts: f64,
    /// The clock is lower than it could be, because of the power limit.
    held: bool,
}

impl Sample {
    fn of(gpu: &Gpu) -> Result<Self> {
        Ok(Self {
            clock: f64::from(gpu.clock_info(Clock::SM)?),
            watts: f64::from(gpu.power_usage()?) / 1e3,
            held: gpu.current_throttle_reasons()?.contains(ThrottleReasons::SW_POWER_CAP),
        })
    }
}

/// Of all, those that are so.
fn share(all: impl ExactSizeIterator<Item = bool>) -> f64 {
    let count = all.len().max(1) as f64;
    all.filter(|held| *held).count() as f64 / count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_no_power_to_tell_of_and_the_work_is_done() {
        let (result, power) = during(Device::Cpu, || Ok(7)).unwrap();
        assert_eq!((result, power), (7, Value::Null));
        assert!(during(Device::Cpu, || -> Result<()> { anyhow::bail!("no") }).is_err());
    }

    #[test]
    fn a_machine_without_the_library_says_so() {
        let (done, ended) = sync_channel(1);
        drop(done);
        let error = format!("{:#}", watch("GPU-none", &ended).unwrap_err());
        assert!(error.starts_with(LIBRARY) || error.starts_with("GPU-none"), "{error}");
    }

    #[test]
    fn a_share_is_of_all() {
        assert_eq!(share([true, false, false, true].into_iter()), 0.5);
        assert_eq!(share([].into_iter()), 0.0);
    }
}
