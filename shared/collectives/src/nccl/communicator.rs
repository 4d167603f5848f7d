//! NCCL's calls on one communicator. It is a non-blocking one: a call returns at once, and whoever made it asks for its
//! progress.

use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::CUstream;
use cudarc::nccl::sys::{self, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId};

use super::gpu::Stream;
use crate::tensor::{Dtype, Elements};
use crate::{CollectiveError, ReduceOp};

/// Of `ncclConfig_t`, as `NCCL_CONFIG_INITIALIZER` has them.
const MAGIC: u32 = 0xcafe_beef;
const UNSET: i32 = i32::MIN;
/// The version whose `ncclConfig_t` the bindings have.
const VERSION: u32 = 22_800;
const BYTES: ncclDataType_t = ncclDataType_t::ncclUint8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    Running,
}

pub(super) fn unique_id() -> Result<ncclUniqueId, CollectiveError> {
    let mut id = ncclUniqueId { internal: [0; 128] };
    // SAFETY: `id` is valid for the write.
    match unsafe { sys::ncclGetUniqueId(&raw mut id) } {
        ncclResult_t::ncclSuccess => Ok(id),
        failed => Err(failure("ncclGetUniqueId", failed, ptr::null_mut())),
    }
}

/// An `ncclComm_t` that has been neither destroyed nor aborted.
#[derive(Debug)]
pub(super) struct Communicator {
    raw: sys::ncclComm_t,
    /// Gets all of its work, and is there as long as the communicator is.
    stream: Arc<Stream>,
}

// SAFETY: NCCL takes calls on a communicator from any thread, one at a time: this is not `Sync`.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Begins to join; the device must be the current one of this thread.
    pub(super) fn begin(
        id: ncclUniqueId,
        rank: i32,
        world_size: i32,
        stream: Arc<Stream>,
    ) -> Result<Self, CollectiveError> {
        let mut config = sys::ncclConfig_t {
            size: size_of::<sys::ncclConfig_t>(),
            magic: MAGIC,
            version: VERSION,
            blocking: 0,
            cgaClusterSize: UNSET,
            minCTAs: UNSET,
            maxCTAs: UNSET,
            netName: ptr::null(),
            splitShare: UNSET,
            trafficClass: UNSET,
            commName: ptr::null(),
            collnetEnable: UNSET,
            CTAPolicy: UNSET,
            shrinkShare: UNSET,
            nvlsCTAs: UNSET,
            nChannelsPerNetPeer: UNSET,
            nvlinkCentricSched: UNSET,
        };
        let mut communicator: sys::ncclComm_t = ptr::null_mut();
        // SAFETY: both pointers are valid for the call; NCCL copies the configuration.
        let result = unsafe {
            sys::ncclCommInitRankConfig(&raw mut communicator, world_size, id, rank, &raw mut config)
        };
        started("ncclCommInitRankConfig", result, communicator)?;
        Ok(Self { raw: communicator, stream })
    }

    /// How far the last call is, as far as the host is concerned; the device may still work on it.
    ///
    /// # Errors
    /// Whatever went wrong since the communicator was begun, on this rank or, where the transport sees it, a peer.
    pub(super) fn progress(&self) -> Result<Progress, CollectiveError> {
        let mut state = ncclResult_t::ncclSuccess;
        // SAFETY: the communicator lives, and `state` is valid for the write.
        let asked = unsafe { sys::ncclCommGetAsyncError(self.raw, &raw mut state) };
        started("ncclCommGetAsyncError", asked, self.raw)?;
        match state {
            ncclResult_t::ncclSuccess => Ok(Progress::Done),
            ncclResult_t::ncclInProgress => Ok(Progress::Running),
            failed => Err(failure("the group", failed, self.raw)),
        }
    }

    /// In `stream`: the communicator's ([`Self::stream`]), or one that is being captured.
    pub(super) fn all_reduce(
        &self,
        stream: CUstream,
        elements: &Elements,
        op: ReduceOp,
    ) -> Result<(), CollectiveError> {
        let (data, numel, dtype) = (elements.data.cast(), elements.numel, dtype(elements.dtype));
        let op = match op {
            ReduceOp::Sum => ncclRedOp_t::ncclSum,
            ReduceOp::Min => ncclRedOp_t::ncclMin,
            ReduceOp::Max => ncclRedOp_t::ncclMax,
        };
        // SAFETY: `numel` elements on the communicator's device, whose tensor the caller holds until the work is done or
        // the communicator aborted; or memory that a graph keeps.
        let result = unsafe { sys::ncclAllReduce(data, data, numel, dtype, op, self.raw, stream.cast()) };
        started("ncclAllReduce", result, self.raw)
    }

    pub(super) fn broadcast(&self, elements: &Elements, root: i32) -> Result<(), CollectiveError> {
        let (data, numel, dtype) = (elements.data.cast(), elements.numel, dtype(elements.dtype));
        // SAFETY: as for `all_reduce`.
        let result =
            unsafe { sys::ncclBroadcast(data, data, numel, dtype, root, self.raw, self.stream().cast()) };
        started("ncclBroadcast", result, self.raw)
    }

    /// # Safety
    /// `from` is the address of `len` bytes of the communicator's device, until the work is done or the communicator aborted.
    pub(super) unsafe fn send(&self, from: u64, len: usize, peer: i32) -> Result<(), CollectiveError> {
        let from = from as *const c_void;
        // SAFETY: the caller's promise.
        let result = unsafe { sys::ncclSend(from, len, BYTES, peer, self.raw, self.stream().cast()) };
        started("ncclSend", result, self.raw)
    }

    /// # Safety
    /// As for [`Self::send`].
    pub(super) unsafe fn receive(&self, to: u64, len: usize, peer: i32) -> Result<(), CollectiveError> {
        let to = to as *mut c_void;
        // SAFETY: the caller's promise.
        let result = unsafe { sys::ncclRecv(to, len, BYTES, peer, self.raw, self.stream().cast()) };
        started("ncclRecv", result, self.raw)
    }

    pub(super) fn stream(&self) -> CUstream {
        self.stream.raw()
    }

    /// Ends what runs, on the device as well, and frees everything. May take long where the device is wedged.
    pub(super) fn abort(self) {
        // SAFETY: the communicator lives, and nobody uses it afterwards. What it returns changes nothing any more.
        let _ = unsafe { sys::ncclCommAbort(self.raw) };
    }
}

fn dtype(dtype: Dtype) -> ncclDataType_t {
    match dtype {
        Dtype::F32 => ncclDataType_t::ncclFloat32,
        Dtype::F64 => ncclDataType_t::ncclFloat64,
        Dtype::Bf16 => ncclDataType_t::ncclBfloat16,
        Dtype::I64 => ncclDataType_t::ncclInt64,
    }
}

fn started(what: &str, result: ncclResult_t, communicator: sys::ncclComm_t) -> Result<(), CollectiveError> {
    match result {
        ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress => Ok(()),
        failed => Err(failure(what, failed, communicator)),
    }
}

/// A peer that is gone or gave up is an abort, like anywhere else; everything else is the transport's.
fn failure(what: &str, result: ncclResult_t, communicator: sys::ncclComm_t) -> CollectiveError {
    // SAFETY: NCCL returns a string of its own that ends with a zero byte, for any communicator or none.
    let text = |text: *const core::ffi::c_char| match text.is_null() {
        true => String::new(),
        false => unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned(),
    };
    // SAFETY: both take any value.
    let (kind, last) =
        unsafe { (text(sys::ncclGetErrorString(result)), text(sys::ncclGetLastError(communicator))) };
    let text = format!("nccl: {what}: {kind}: {last}");
    let text = text.trim_end_matches([' ', ':']).to_owned();
    match result {
        ncclResult_t::ncclRemoteError => CollectiveError::Aborted { reason: text },
        _ => CollectiveError::Io(text),
    }
}
