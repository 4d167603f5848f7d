use std::ptr;

use tch::Device;

use crate::ExtraError;
use crate::ffi::{
    EventPtr, check, index, torch_extra_event_elapsed, torch_extra_event_free, torch_extra_event_record,
};

/// A point in the work of a device: passed when all that was given before it is done.
#[derive(Debug)]
pub struct Event(EventPtr);

// SAFETY: events of CUDA may be used from any thread, one at a time.
unsafe impl Send for Event {}

impl Event {
    /// After all that this thread's current stream of `device` was given.
    ///
    /// # Errors
    /// For a device other than `cuda:N`, or what libtorch says.
    pub fn record(device: Device) -> Result<Self, ExtraError> {
        let (call, mut event) = ("record an event", ptr::null_mut());
        let device = index(call, device)?;
        // SAFETY: the call writes to `event` alone.
        unsafe { check(call, torch_extra_event_record(device, &raw mut event)) }?;
        Ok(Self(event))
    }

    /// Milliseconds of the device from this event to `end`, for which the host waits.
    ///
    /// # Errors
    /// For events of different devices, or what went wrong on the device meanwhile.
    pub fn ms_until(&self, end: &Self) -> Result<f64, ExtraError> {
        let mut ms = 0.0;
        // SAFETY: both are events that were recorded, and the call writes to `ms` alone.
        unsafe { check("time between events", torch_extra_event_elapsed(self.0, end.0, &raw mut ms)) }?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it was made in `record` and is freed once.
        unsafe { torch_extra_event_free(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_no_events_and_a_gpu_that_is_not_there_says_so() {
        let error = Event::record(Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("only cuda:N is allowed"), "{error}");
        assert_eq!(Event::record(Device::Cuda(0)).unwrap_err().call, "record an event");
    }
}
