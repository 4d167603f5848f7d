//! What the kernels of [`crate::dit::fused`] and [`crate::vae::fused`] share: how they are compiled for a GPU, how they are
//! launched, and what is asked of their tensors. They run on libtorch's current stream, so they are ordered with its
//! operations.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, PoisonError};

use device::{Argument, CompileError, DriverFailure, Kernel, Program};
use tch::{Device, Kind, Tensor};

/// bf16 values of one load.
pub(crate) const WIDTH: i64 = 8;
pub(crate) const WARP: u32 = 32;
pub(crate) const MAX_THREADS: u32 = 1024;

/// Why a kernel was not launched.
#[derive(Debug, thiserror::Error)]
pub enum FusedError {
    #[error("{what}: expected {expected}, got {found}")]
    Input { what: &'static str, expected: String, found: String },
    #[error(transparent)]
    Stream(#[from] torch_extra::ExtraError),
    #[error(transparent)]
    Driver(#[from] DriverFailure),
}

/// The kernels of one source, on one GPU.
#[derive(Debug)]
pub(crate) struct Kernels {
    device: Device,
    program: Program,
}

impl Kernels {
    /// Compiles a source for `cuda:index`.
    pub(crate) fn load(index: usize, source: &str) -> Result<Self, CompileError> {
        let source = CString::new(source).unwrap_or_default();
        Ok(Self { device: Device::Cuda(index), program: Program::load(index, &source)? })
    }

    pub(crate) fn get(&self, name: &CStr) -> Result<Kernel, DriverFailure> {
        self.program.kernel(name)
    }

    /// # Safety
    /// As for [`Program::launch`].
    pub(crate) unsafe fn launch(
        &self,
        kernel: Kernel,
        blocks: (i64, i64),
        threads: u32,
        arguments: &[Argument],
    ) -> Result<(), FusedError> {
        let stream = torch_extra::current_stream(self.device)?;
        let blocks = (count(blocks.0), count(blocks.1));
        // SAFETY: the caller's; the stream is of this device.
        Ok(unsafe { self.program.launch(kernel, blocks, threads, stream.0, arguments) }?)
    }

    /// Place of a contiguous tensor of exactly this shape.
    pub(crate) fn whole(
        &self,
        what: &'static str,
        tensor: &Tensor,
        shape: &[i64],
        kind: Kind,
    ) -> Result<Argument, FusedError> {
        if tensor.size() != shape || !tensor.is_contiguous() {
            let found = format!("{:?}, strides {:?}", tensor.size(), tensor.stride());
            return Err(mismatch(what, &format!("{shape:?}, contiguous"), found));
        }
        self.aligned(what, tensor, kind)
    }

    /// Place of a tensor that is read in vectors of 16 bytes.
    pub(crate) fn aligned(
        &self,
        what: &'static str,
        tensor: &Tensor,
        kind: Kind,
    ) -> Result<Argument, FusedError> {
        let place = tensor.data_ptr();
        if (tensor.kind(), tensor.device()) != (kind, self.device) || !(place as usize).is_multiple_of(16) {
            let expected = format!("{kind:?} on {:?} at a multiple of 16 bytes", self.device);
            let found = format!("{:?} on {:?} at {place:?}", tensor.kind(), tensor.device());
            return Err(mismatch(what, &expected, found));
        }
        Ok(Argument::Pointer(place))
    }
}

/// What was compiled for each GPU, or why it could not be: once in a process.
pub(crate) struct PerGpu<T>(Mutex<BTreeMap<usize, Result<Arc<T>, String>>>);

impl<T> PerGpu<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// What `load` makes for `device`, on the first call.
    ///
    /// # Errors
    /// What it said then; for what is none of the GPUs.
    pub(crate) fn get(
        &self,
        device: Device,
        load: impl FnOnce(usize) -> Result<T, CompileError>,
    ) -> Result<Arc<T>, String> {
        let there = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        let index = match device {
            Device::Cuda(index) if index < there => index,
            _ => return Err(format!("{device:?} is none of the {there} GPUs")),
        };
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        made.entry(index)
            .or_insert_with(|| load(index).map(Arc::new).map_err(|error| error.to_string()))
            .clone()
    }
}

pub(crate) fn mismatch(what: &'static str, expected: &str, found: String) -> FusedError {
    FusedError::Input { what, expected: expected.to_owned(), found }
}

/// Sizes of tensors that fit a GPU fit.
pub(crate) fn small(size: i64) -> i32 {
    i32::try_from(size).unwrap_or(-1)
}

pub(crate) fn count(size: i64) -> u32 {
    small(size).max(0).cast_unsigned()
}

/// Compiles a source for every generation of GPUs that is supported.
#[cfg(test)]
pub(crate) fn assert_compiles(source: &str) {
    let source = CString::new(source).unwrap();
    for capability in [[8, 0], [8, 9], [9, 0], [10, 0], [12, 0]] {
        let code = device::compile(&source, capability).unwrap_or_else(|error| panic!("{error}"));
        assert!(code.starts_with(b"\x7fELF"), "{capability:?}");
    }
}
