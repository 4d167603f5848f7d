//! The functions of `extra.cpp`, which says what they do.

use std::ffi::{CStr, c_char, c_void};

use tch::{Device, Tensor};

use crate::ExtraError;

/// An `at::Tensor`.
pub(crate) type TensorPtr = *mut c_void;
/// A `c10::Stream`.
pub(crate) type StreamPtr = *mut c_void;
/// A `c10::Event`.
pub(crate) type EventPtr = *mut c_void;
type Message = *mut c_char;

unsafe extern "C" {
    pub(crate) fn torch_extra_cudnn_attention(
        q: TensorPtr,
        k: TensorPtr,
        v: TensorPtr,
        with_lse: bool,
        out: *mut TensorPtr,
        lse: *mut TensorPtr,
    ) -> Message;
    pub(crate) fn torch_extra_linear_gelu(
        x: TensorPtr,
        weight: TensorPtr,
        bias: TensorPtr,
        out: *mut TensorPtr,
    ) -> Message;
    pub(crate) fn torch_extra_pinned(tensor: TensorPtr, out: *mut TensorPtr) -> Message;
    pub(crate) fn torch_extra_current_stream(device: i64, stream: *mut *mut c_void) -> Message;
    pub(crate) fn torch_extra_event_record(device: i64, event: *mut EventPtr) -> Message;
    pub(crate) fn torch_extra_event_elapsed(start: EventPtr, end: EventPtr, ms: *mut f64) -> Message;
    pub(crate) fn torch_extra_event_free(event: EventPtr);
    pub(crate) fn torch_extra_memory(device: i64, bytes: *mut i64) -> Message;
    pub(crate) fn torch_extra_enter_capture(
        device: i64,
        pool: u64,
        before: *mut StreamPtr,
        stream: *mut *mut c_void,
    ) -> Message;
    pub(crate) fn torch_extra_leave_capture(device: i64, pool: u64, before: StreamPtr) -> Message;
    pub(crate) fn torch_extra_release_pool(device: i64, pool: u64) -> Message;
}

pub(crate) fn pointer(tensor: &Tensor) -> TensorPtr {
    tensor.as_ptr().cast_mut().cast()
}

/// The CUDA index of a device.
pub(crate) fn index(call: &'static str, device: Device) -> Result<i64, ExtraError> {
    match device {
        Device::Cuda(index) => Ok(i64::try_from(index).unwrap_or(i64::MAX)),
        other => Err(ExtraError { call, what: format!("device {other:?}: only cuda:N is allowed") }),
    }
}

/// # Safety
/// `message` is what a function above returned.
pub(crate) unsafe fn check(call: &'static str, message: Message) -> Result<(), ExtraError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a message is a string that ends with a zero and that nobody else frees.
    let what = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // SAFETY: it was made by `strdup`.
    unsafe { libc::free(message.cast()) };
    Err(ExtraError { call, what })
}
