//! What only a GPU can show of the generator: bf16 against float32, two ranks against one, and synthetic weights that are
//! the CPU's bit for bit; calls as CUDA graphs; and each kernel by itself. Each prints what it measured.
#![allow(clippy::unwrap_used, reason = "test code")]

mod graphs;
mod kernels;
mod precision;
mod ranks;
mod stream;
mod weights;

use device::DeviceKind;
use tch::{Device, Kind, Tensor};

pub(crate) fn gpu() -> Device {
    device::resolve(DeviceKind::Cuda(0), None).unwrap().device
}

/// `|found - expected| / |expected|`, in float64. Never passes a comparison where a value is not a number.
pub(crate) fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    let wide = |x: &Tensor| x.to_device(Device::Cpu).to_kind(Kind::Double);
    let (found, expected) = (wide(found), wide(expected));
    ((found - &expected).norm() / expected.norm()).double_value(&[])
}
