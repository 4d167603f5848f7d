//! What is needed of a GPU beside its tensors: to be the current device of a thread, and to say when its stream has come
//! to a point.

use std::ptr;
use std::sync::Arc;

use cudarc::driver::result::stream::{self, StreamKind};
use cudarc::driver::result::{DriverError, event};
use cudarc::driver::sys::{CUevent, CUevent_flags_enum, CUresult, CUstream};
use device::{Context, DriverFailure};

use crate::CollectiveError;

/// What puts the work of a group in order on its device.
#[derive(Debug)]
pub(super) struct Stream {
    raw: CUstream,
    /// Of a stream of its own.
    context: Option<Context>,
}

// SAFETY: streams of the driver may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: the driver locks what it has to.
unsafe impl Sync for Stream {}

impl Stream {
    /// torch's current one, which nobody changes: what is put there is ordered with the work of tensors.
    pub(super) fn of_torch() -> Self {
        Self { raw: ptr::null_mut(), context: None }
    }

    /// One that waits for no other. Makes `cuda:index` the current device of this thread.
    pub(super) fn new(index: usize) -> Result<Self, CollectiveError> {
        let context = Context::of(index)?;
        let raw = stream::create(StreamKind::NonBlocking).map_err(DriverFailure::of("cuStreamCreate"))?;
        Ok(Self { raw, context: Some(context) })
    }

    pub(super) fn is_torchs(&self) -> bool {
        self.context.is_none()
    }

    pub(super) fn raw(&self) -> CUstream {
        self.raw
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(context) = &self.context {
            let _ = context.enter();
            // SAFETY: made above, and nobody gives it work any more; what it still has is done before it is freed.
            let _ = unsafe { stream::destroy(self.raw) };
        }
    }
}

/// A device with one mark in a stream.
#[derive(Debug)]
pub(super) struct Gpu {
    context: Context,
    mark: CUevent,
    stream: Arc<Stream>,
}

// SAFETY: events of the driver may be used from any thread.
unsafe impl Send for Gpu {}
// SAFETY: the driver locks what it has to.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Makes the device the current one of this thread.
    pub(super) fn of(index: usize, stream: Arc<Stream>) -> Result<Self, CollectiveError> {
        let context = Context::of(index)?;
        let mark = event::create(CUevent_flags_enum::CU_EVENT_DISABLE_TIMING)
            .map_err(DriverFailure::of("cuEventCreate"))?;
        Ok(Self { context, mark, stream })
    }

    /// Makes the device the current one of this thread.
    pub(super) fn enter(&self) -> Result<(), CollectiveError> {
        Ok(self.context.enter()?)
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Sets the mark behind everything that has been given to the stream so far.
    pub(super) fn mark(&self) -> Result<(), CollectiveError> {
        // SAFETY: event and stream live.
        let recorded = unsafe { event::record(self.mark, self.stream.raw()) };
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
