//! A GPU as the driver knows it, for what tensors do not do: it has to be the current device of the thread that asks.

use cudarc::driver::result::{DriverError, ctx, device, init, primary_ctx};
use cudarc::driver::sys::{CUcontext, CUdevice};

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
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, here. torch holds the context too.
        let _ = unsafe { primary_ctx::release(self.device) };
    }
}
