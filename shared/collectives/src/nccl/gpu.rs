//! What is needed of a GPU beside its tensors: to be the current device of a thread, and to say when its stream has come
//! to a point.

use std::ptr;

use cudarc::driver::result::{DriverError, ctx, device, event, init, primary_ctx};
use cudarc::driver::sys::{CUcontext, CUdevice, CUevent, CUevent_flags_enum, CUresult};

use crate::CollectiveError;

/// The context that torch uses on one device, with one mark in its current stream.
#[derive(Debug)]
pub(super) struct Gpu {
    device: CUdevice,
    context: CUcontext,
    mark: CUevent,
}

// SAFETY: contexts and events of the driver may be used from any thread.
unsafe impl Send for Gpu {}
// SAFETY: the driver locks what it has to.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Makes the device the current one of this thread.
    pub(super) fn of(index: usize) -> Result<Self, CollectiveError> {
        init().map_err(|e| failure("cuInit", &e))?;
        let device = i32::try_from(index).unwrap_or(i32::MAX);
        let device = device::get(device).map_err(|e| failure("cuDeviceGet", &e))?;
        // SAFETY: the device is one that the driver gave.
        let context = unsafe { primary_ctx::retain(device) };
        let context = context.map_err(|e| failure("cuDevicePrimaryCtxRetain", &e))?;
        let mut gpu = Self { device, context, mark: ptr::null_mut() };
        gpu.enter()?;
        gpu.mark = event::create(CUevent_flags_enum::CU_EVENT_DISABLE_TIMING)
            .map_err(|e| failure("cuEventCreate", &e))?;
        Ok(gpu)
    }

    /// Makes the device the current one of this thread.
    pub(super) fn enter(&self) -> Result<(), CollectiveError> {
        // SAFETY: the context is retained.
        unsafe { ctx::set_current(self.context) }.map_err(|e| failure("cuCtxSetCurrent", &e))
    }

    /// Sets the mark behind everything that has been given to the stream so far.
    pub(super) fn mark(&self) -> Result<(), CollectiveError> {
        // SAFETY: the event lives; the null stream is torch's current one.
        unsafe { event::record(self.mark, ptr::null_mut()) }.map_err(|e| failure("cuEventRecord", &e))
    }

    /// Whether the stream has passed the mark.
    pub(super) fn passed(&self) -> Result<bool, CollectiveError> {
        // SAFETY: the event lives.
        match unsafe { event::query(self.mark) } {
            Ok(()) => Ok(true),
            Err(DriverError(CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(failure("cuEventQuery", &error)),
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if !self.mark.is_null() {
            // SAFETY: nobody uses it any more; a mark that was not passed yet is freed once it is.
            let _ = unsafe { event::destroy(self.mark) };
        }
        // SAFETY: retained once, here. torch holds the context too.
        let _ = unsafe { primary_ctx::release(self.device) };
    }
}

fn failure(what: &str, error: &DriverError) -> CollectiveError {
    CollectiveError::Io(format!("cuda: {what}: {error:?}"))
}
