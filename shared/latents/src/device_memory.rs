//! Memory on a GPU that another process of the host can open.

use std::ptr;

use contract::{Error, Reason};
use cudarc::driver::result::stream::{self, StreamKind};
use cudarc::driver::result::{free_sync, malloc_sync};
use cudarc::driver::sys::{self, CUdeviceptr, CUipcMemHandle, CUstream};
use device::{Context, DriverFailure};
use tch::{Device, Tensor};

use crate::ring::Handle;

#[derive(Debug)]
pub(crate) struct DeviceMemory {
    context: Context,
    index: usize,
    /// Of its own: copies do not queue behind what torch computes meanwhile.
    stream: CUstream,
    base: CUdeviceptr,
    len: usize,
    /// Another process's, mapped here.
    borrowed: bool,
}

// SAFETY: streams of the driver may be used from any thread.
unsafe impl Send for DeviceMemory {}
// SAFETY: the driver locks what it has to.
unsafe impl Sync for DeviceMemory {}

impl DeviceMemory {
    /// # Errors
    /// `internal` when the memory cannot be had.
    pub(crate) fn allocate(index: usize, len: usize) -> Result<Self, Error> {
        let none = |failure: DriverFailure| refused(&format!("no link of {len} bytes can be made"), failure);
        let context = Context::of(index).map_err(none)?;
        // SAFETY: the device is current; the memory is freed on drop.
        let base = unsafe { malloc_sync(len) }.map_err(DriverFailure::of("cuMemAlloc")).map_err(none)?;
        Self { context, index, stream: ptr::null_mut(), base, len, borrowed: false }.with_stream()
    }

    /// Maps what [`Self::handle`] names in another process, for the GPU `index`: the same one, or a peer of it.
    ///
    /// # Errors
    /// `not_ready` when it is gone, or on a GPU that this one does not reach.
    pub(crate) fn open(index: usize, handle: &Handle, len: usize) -> Result<Self, Error> {
        let gone = |failure: DriverFailure| {
            let text = "the link's device memory cannot be opened: it is gone, or on a GPU that this one does not reach";
            Error::new(Reason::NotReady, text).detail(failure.to_string())
        };
        let context = Context::of(index).map_err(gone)?;
        let handle = CUipcMemHandle { reserved: handle.map(u8::cast_signed) };
        let flags = sys::CUipcMem_flags_enum::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut base = 0;
        // SAFETY: the device is current; the mapping is closed on drop.
        let opened = unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut base, handle, flags) }.result();
        opened.map_err(DriverFailure::of("cuIpcOpenMemHandle")).map_err(gone)?;
        Self { context, index, stream: ptr::null_mut(), base, len, borrowed: true }.with_stream()
    }

    fn with_stream(mut self) -> Result<Self, Error> {
        let stream = stream::create(StreamKind::NonBlocking).map_err(DriverFailure::of("cuStreamCreate"));
        self.stream = stream.map_err(|failure| refused("no stream for the link", failure))?;
        Ok(self)
    }

    /// What another process opens it by.
    ///
    /// # Errors
    /// `internal`: this kind of memory cannot be shared on this machine.
    pub(crate) fn handle(&self) -> Result<Handle, Error> {
        let mut handle = CUipcMemHandle { reserved: [0; size_of::<Handle>()] };
        // SAFETY: memory of our own.
        let got = unsafe { sys::cuIpcGetMemHandle(&raw mut handle, self.base) }.result();
        got.map_err(|error| {
            let failure = DriverFailure::of("cuIpcGetMemHandle")(error);
            refused("device memory cannot be shared between processes here", failure)
        })?;
        Ok(handle.reserved.map(i8::cast_unsigned))
    }

    /// Where tensors are wanted that are copied out of it. On the leader's GPU; stage0, whose stream decodes the chunk before
    /// at that time, takes them to the CPU rather than wait.
    pub(crate) fn place(&self) -> Device {
        if self.borrowed { Device::Cpu } else { Device::Cuda(self.index) }
    }

    /// `len` bytes from a dense tensor, on a GPU or not, to `offset`.
    pub(crate) fn put(&self, offset: usize, tensor: &Tensor, len: usize) -> Result<(), Error> {
        self.copy(self.at(offset, len), address(tensor), len, tensor.device())
    }

    /// `len` bytes from `offset` to a dense tensor, on a GPU or not.
    pub(crate) fn get(&self, offset: usize, tensor: &Tensor, len: usize) -> Result<(), Error> {
        self.copy(address(tensor), self.at(offset, len), len, tensor.device())
    }

    /// # Panics
    /// When the span is not inside: a defect of the caller.
    pub(crate) fn at(&self, offset: usize, len: usize) -> CUdeviceptr {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "{len} bytes at {offset} are not inside {} bytes of device memory", self.len);
        self.base + offset as u64
    }

    /// Waits for the end.
    fn copy(&self, to: CUdeviceptr, from: CUdeviceptr, len: usize, tensor: Device) -> Result<(), Error> {
        if len == 0 {
            return Ok(());
        }
        let copied = || -> Result<(), DriverFailure> {
            self.context.enter()?;
            let finished = |stream| {
                // SAFETY: a stream that lives, or torch's own.
                unsafe { stream::synchronize(stream) }.map_err(DriverFailure::of("cuStreamSynchronize"))
            };
            if tensor.is_cuda() {
                // What torch has yet to do may make this tensor, or still use the memory that became its.
                finished(ptr::null_mut())?;
            }
            // SAFETY: both places hold `len` bytes and live until the copy has ended, below.
            let begun = unsafe { sys::cuMemcpyAsync(to, from, len, self.stream) }.result();
            begun.map_err(DriverFailure::of("cuMemcpyAsync"))?;
            finished(self.stream)
        };
        copied().map_err(|failure| refused("a tensor could not be copied for the link", failure))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // What the driver says to this changes nothing: a context that has failed takes its memory with it.
        let _ = self.context.enter();
        // SAFETY: mapped or allocated once, above; every copy has ended.
        unsafe {
            if !self.stream.is_null() {
                let _ = stream::destroy(self.stream);
            }
            if self.borrowed {
                let _ = sys::cuIpcCloseMemHandle(self.base);
            } else {
                let _ = free_sync(self.base);
            }
        }
    }
}

fn address(tensor: &Tensor) -> CUdeviceptr {
    tensor.data_ptr() as CUdeviceptr
}

fn refused(what: &str, failure: DriverFailure) -> Error {
    Error::new(Reason::Internal, what).detail(failure.to_string())
}
