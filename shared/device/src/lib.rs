//! Which device a process computes on: `auto`, `cpu` or `cuda:N`, resolved to one that is there.
//!
//! Nothing here is linked against CUDA. Asked for a GPU, a process opens the CUDA half of its libtorch at run time, which
//! has to happen before its first tensor: libtorch looks for it once.

mod context;
mod graph;
mod kind;
mod libraries;
mod memory;
mod program;

use std::path::Path;

use tch::Device;

pub use context::{Context, DriverFailure};
pub use graph::Graph;
pub use kind::DeviceKind;
pub use memory::{Memory, MemoryError};
pub use program::{Argument, Capability, CompileError, Kernel, Program, compile};

/// Why the device that was asked for cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("device {0:?}: auto, cpu or cuda:N is allowed")]
    Name(String),
    #[error("device {wanted}: {missing}")]
    Missing { wanted: String, missing: String },
    #[error("device cuda:{wanted}: there are {found} CUDA devices, cuda:0 to cuda:{last} are allowed", last = found - 1)]
    Index { wanted: usize, found: usize },
}

/// The device in effect, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub device: Device,
    /// For people: what was asked for, and what `auto` found.
    pub because: String,
}

/// Resolves a device. `libraries` is the folder of `libtorch_cuda.so`; without it, that of the libtorch in use. The
/// first call that wants a GPU decides for the process which folder is opened.
///
/// # Errors
/// [`DeviceError::Missing`] and [`DeviceError::Index`] for `cuda:N` alone: `auto` takes the CPU instead.
pub fn resolve(kind: DeviceKind, libraries: Option<&Path>) -> Result<Chosen, DeviceError> {
    let chosen = |device, because: String| Ok(Chosen { device, because });
    match kind {
        DeviceKind::Cpu => chosen(Device::Cpu, "asked for".to_owned()),
        DeviceKind::Auto => match libraries::devices(libraries) {
            Ok(_) => chosen(Device::Cuda(0), "auto: a GPU is there".to_owned()),
            Err(missing) => chosen(Device::Cpu, format!("auto: {missing}")),
        },
        DeviceKind::Cuda(wanted) => match libraries::devices(libraries) {
            Ok(found) if wanted < found => chosen(Device::Cuda(wanted), "asked for".to_owned()),
            Ok(found) => Err(DeviceError::Index { wanted, found }),
            Err(missing) => Err(DeviceError::Missing { wanted: kind.to_string(), missing }),
        },
    }
}

/// `cpu` or `cuda`: what ranks of one mesh have in common.
#[must_use]
pub fn family(device: Device) -> &'static str {
    if device.is_cuda() { "cuda" } else { "cpu" }
}
