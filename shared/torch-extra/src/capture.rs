use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use tch::Device;

use crate::ffi::{
    StreamPtr, check, index, torch_extra_enter_capture, torch_extra_leave_capture, torch_extra_release_pool,
};
use crate::{ExtraError, Stream};

/// libtorch numbers its own pools from 1.
static NEXT: AtomicU64 = AtomicU64::new(1 << 32);

/// Memory of captured graphs, which nothing else gets as long as the pool is there: a graph reads and writes the same addresses
/// each time it runs. It must outlive the graphs.
#[derive(Debug)]
pub struct Pool {
    device: i64,
    id: u64,
    /// How often it was entered.
    entered: Cell<u32>,
}

impl Pool {
    /// An empty one.
    ///
    /// # Errors
    /// For a device other than `cuda:N`.
    pub fn new(device: Device) -> Result<Self, ExtraError> {
        let device = index("memory pool", device)?;
        Ok(Self { device, id: NEXT.fetch_add(1, Ordering::Relaxed), entered: Cell::new(0) })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for _ in 0..self.entered.get() {
            // SAFETY: entered once for each. A pool that cannot be given back stays with the process.
            let _ = unsafe { check("release pool", torch_extra_release_pool(self.device, self.id)) };
        }
    }
}

/// While it is there, tensor operations of this thread go to the stream that graphs are captured on, and their memory comes from a
/// pool. It begins no capture; that is the driver's.
#[derive(Debug)]
pub struct Capture<'a> {
    pool: &'a Pool,
    before: StreamPtr,
    stream: Stream,
}

impl<'a> Capture<'a> {
    /// # Errors
    /// Without CUDA, or what libtorch says.
    pub fn enter(pool: &'a Pool) -> Result<Self, ExtraError> {
        let (mut before, mut stream) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the call writes to the two pointers alone.
        let entered =
            unsafe { torch_extra_enter_capture(pool.device, pool.id, &raw mut before, &raw mut stream) };
        // SAFETY: the message of that call.
        unsafe { check("enter capture", entered) }?;
        pool.entered.set(pool.entered.get() + 1);
        Ok(Self { pool, before, stream: Stream(stream) })
    }

    /// Where the work goes.
    pub fn stream(&self) -> Stream {
        self.stream
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // SAFETY: `before` is what the call that entered handed out, and is given back once.
        let left = unsafe { torch_extra_leave_capture(self.pool.device, self.pool.id, self.before) };
        // SAFETY: the message of that call. It cannot fail where entering did not.
        let _ = unsafe { check("leave capture", left) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_it_says_what_is_missing() {
        assert_eq!(Pool::new(Device::Cpu).unwrap_err().call, "memory pool");
        let pool = Pool::new(Device::Cuda(0)).unwrap();
        assert_eq!(Capture::enter(&pool).unwrap_err().call, "enter capture");
    }
}
