//! How fast this very device multiplies matrices, as a measure for everything else.

use tch::{Device, Kind, Tensor};

use crate::Failure;
use crate::gpu::seconds;

/// TFLOP/s of large square matrix products of random values: the median of several.
pub(crate) fn gemm(device: Device, kind: Kind) -> Result<f64, Failure> {
    let n: i64 = if device.is_cuda() { 8192 } else { 1024 };
    let operand = || Tensor::f_randn([n, n], (Kind::Float, device)).and_then(|x| x.f_to_kind(kind));
    let (a, b) = (operand()?, operand()?);
    let mut rates = Vec::new();
    for _ in 0..12 {
        let (time, _) = seconds(device, || Ok(a.f_matmul(&b)?))?;
        rates.push(2.0 * (n as f64).powi(3) / time / 1e12);
    }
    // The first ones choose kernels and make handles.
    let mut rates = rates.split_off(4);
    rates.sort_by(f64::total_cmp);
    Ok(rates[rates.len() / 2])
}
