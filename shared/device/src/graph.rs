//! Work of a stream that was captured once and is launched as a whole, so that the host prepares none of it again.

use std::ffi::c_void;

use cudarc::driver::result::{graph, stream};
use cudarc::driver::sys::{CUgraph, CUgraphExec, CUgraphInstantiate_flags, CUstream, CUstreamCaptureMode};

use crate::DriverFailure;

/// A captured graph, ready for launching.
#[derive(Debug)]
pub struct Graph {
    graph: CUgraph,
    ready: CUgraphExec,
}

// SAFETY: graphs of the driver may be used from any thread, one at a time: this is not `Sync`.
unsafe impl Send for Graph {}

impl Graph {
    /// Captures what `work` gives to `stream`, a `CUstream` of the current device that is not the default one. None of it runs.
    ///
    /// # Errors
    /// What `work` says; what the driver says, also of work that cannot be captured.
    ///
    /// # Safety
    /// The stream lives. The memory that the work reads and writes stays where it is as long as the graph is launched.
    pub unsafe fn capture<T, E: From<DriverFailure>>(
        stream: *mut c_void,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<(Self, T), E> {
        let stream = stream as CUstream;
        // What other threads do meanwhile is no concern of this capture.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        unsafe { stream::begin_capture(stream, mode) }.map_err(DriverFailure::of("cuStreamBeginCapture"))?;
        let done = work();
        // SAFETY: its capture was begun on this thread, and ends whatever became of the work.
        let captured = unsafe { stream::end_capture(stream) };
        let done = done.inspect_err(|_| {
            if let Ok(graph) = captured
                && !graph.is_null()
            {
                // SAFETY: nobody else has it.
                let _ = unsafe { graph::destroy(graph) };
            }
        })?;
        let graph = captured.map_err(DriverFailure::of("cuStreamEndCapture"))?;
        // SAFETY: the graph is whole.
        let ready = unsafe { graph::instantiate(graph, CUgraphInstantiate_flags(0)) };
        let ready = ready.map_err(|error| {
            // SAFETY: nobody else has it.
            let _ = unsafe { graph::destroy(graph) };
            DriverFailure::of("cuGraphInstantiate")(error)
        })?;
        Ok((Self { graph, ready }, done))
    }

    /// Gives the whole work to `stream`, null for the default one.
    ///
    /// # Errors
    /// What the driver says of the launch; what goes wrong later is told by later calls.
    ///
    /// # Safety
    /// The stream lives, and the memory is still where it was at the capture.
    pub unsafe fn launch(&self, stream: *mut c_void) -> Result<(), DriverFailure> {
        // SAFETY: the graph lives, the rest is the caller's.
        unsafe { graph::launch(self.ready, stream as CUstream) }.map_err(DriverFailure::of("cuGraphLaunch"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: nobody launches it any more; what runs of it is done before the driver frees it.
        let _ = unsafe { graph::exec_destroy(self.ready) };
        // SAFETY: as above.
        let _ = unsafe { graph::destroy(self.graph) };
    }
}
