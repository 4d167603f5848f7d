//! A GPU as the driver knows it, for what tensors do not do: it has to be the current device of the thread that asks.

use std::ptr;

use cudarc::driver::result::{DriverError, ctx, device, init, primary_ctx};
use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute};

use crate::program::Capability;

/// What the driver said, and to which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cuda: {call}: {error:?}")]
pub struct DriverFailure {
    pub call: &'static str,
    pub error: DriverError,
}

impl DriverFailure {
    /// For `map_err` on a call of the driver.
    pub fn of(call: &'static str) -> impl Fn(DriverError) -> Self {
        move |error| Self { call, error }
    }
}

/// The context that torch uses on one device.
#[derive(Debug)]
pub struct Context {
    device: CUdevice,
    context: CUcontext,
}

// SAFETY: contexts of the driver may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: the driver locks what it has to.
unsafe impl Sync for Context {}

impl Context {
    /// Of `cuda:index`. Makes it the current device of this thread.
    ///
    /// # Errors
    /// Without such a device; the driver itself has to be there, as [`crate::resolve`] sees to.
    pub fn of(index: usize) -> Result<Self, DriverFailure> {
        init().map_err(DriverFailure::of("cuInit"))?;
        let device = i32::try_from(index).unwrap_or(i32::MAX);
        let device = device::get(device).map_err(DriverFailure::of("cuDeviceGet"))?;
        // SAFETY: the device is one that the driver gave.
        let context = unsafe { primary_ctx::retain(device) };
        let context = context.map_err(DriverFailure::of("cuDevicePrimaryCtxRetain"))?;
        let context = Self { device, context };
        context.enter()?;
        Ok(context)
    }

    /// Makes it the current device of this thread.
    ///
    /// # Errors
    /// What the driver says.
    pub fn enter(&self) -> Result<(), DriverFailure> {
        // SAFETY: the context is retained.
        unsafe { ctx::set_current(self.context) }.map_err(DriverFailure::of("cuCtxSetCurrent"))
    }

    /// Runs `work` with it as the current device of this thread, and gives the thread back the one it had.
    ///
    /// # Errors
    /// What the driver says, or what `work` does.
    pub fn within<T>(&self, work: impl FnOnce() -> Result<T, DriverFailure>) -> Result<T, DriverFailure> {
        let before = ctx::get_current().map_err(DriverFailure::of("cuCtxGetCurrent"))?;
        if before == Some(self.context) {
            return work();
        }
        self.enter()?;
        let result = work();
        // SAFETY: it was current, or it is null, which means none.
        let back = unsafe { ctx::set_current(before.unwrap_or(ptr::null_mut())) };
        back.map_err(DriverFailure::of("cuCtxSetCurrent"))?;
        result
    }

    /// The device's compute capability.
    ///
    /// # Errors
    /// What the driver says.
    pub fn capability(&self) -> Result<Capability, DriverFailure> {
        use CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        // SAFETY: the device is one that the driver gave.
        let read = |attribute| unsafe { device::get_attribute(self.device, attribute) };
        let read = |attribute| read(attribute).map_err(DriverFailure::of("cuDeviceGetAttribute"));
        Ok([read(MAJOR)?, read(MINOR)?])
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, here. torch holds the context too.
        let _ = unsafe { primary_ctx::release(self.device) };
    }
}
