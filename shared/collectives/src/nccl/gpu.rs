//! What is needed of a GPU beside its tensors: to be the current device of a thread, and to say when its stream has come
//! to a point.

use std::ptr;

use cudarc::driver::result::{DriverError, event};
use cudarc::driver::sys::{CUevent, CUevent_flags_enum, CUresult};
use device::{Context, DriverFailure};

use crate::CollectiveError;

/// A device with one mark in its current stream.
#[derive(Debug)]
pub(super) struct Gpu {
    context: Context,
    mark: CUevent,
}

// SAFETY: events of the driver may be used from any thread.
unsafe impl Send for Gpu {}
// SAFETY: the driver locks what it has to.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Makes the device the current one of this thread.
    pub(super) fn of(index: usize) -> Result<Self, CollectiveError> {
        let context = Context::of(index)?;
        let mark = event::create(CUevent_flags_enum::CU_EVENT_DISABLE_TIMING)
            .map_err(DriverFailure::of("cuEventCreate"))?;
        Ok(Self { context, mark })
    }

    /// Makes the device the current one of this thread.
    pub(super) fn enter(&self) -> Result<(), CollectiveError> {
        Ok(self.context.enter()?)
    }

    /// Sets the mark behind everything that has been given to the stream so far.
    pub(super) fn mark(&self) -> Result<(), CollectiveError> {
        // SAFETY: the event lives; the null stream is torch's current one.
        let recorded = unsafe { event::record(self.mark, ptr::null_mut()) };
        Ok(recorded.map_err(DriverFailure::of("cuEventRecord"))?)
    }

    /// Whether the stream has passed the mark.
    pub(super) fn passed(&self) -> Result<bool, CollectiveError> {
        // SAFETY: the event lives.
        match unsafe { event::query(self.mark) } {
            Ok(()) => Ok(true),
            Err(DriverError(CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(DriverFailure::of("cuEventQuery")(error).into()),
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more; a mark that was not passed yet is freed once it is.
        let _ = unsafe { event::destroy(self.mark) };
    }
}
