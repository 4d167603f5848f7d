//! What libtorch has and tch does not bind: attention by cuDNN, a product with GELU in it, pinned memory, the current stream, events,
//! and the allocator's statistics. The C++ is in `extra.cpp`; errors are what libtorch said.
//!
//! Nothing here opens CUDA: that is `device`'s, and before it has every call is an error that names what is missing.

mod attention;
mod capture;
mod event;
mod ffi;
mod linear;
mod memory;
mod pinned;
mod stream;

pub use attention::{cudnn_attention, cudnn_attention_with_lse};
pub use capture::{Capture, Pool};
pub use event::Event;
pub use linear::linear_gelu;
pub use memory::{Memory, memory};
pub use pinned::pinned;
pub use stream::{Stream, current_stream};

/// What libtorch said, and to which call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("libtorch: {call}: {what}")]
pub struct ExtraError {
    pub call: &'static str,
    pub what: String,
}
