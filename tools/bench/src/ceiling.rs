//! How fast this very device multiplies matrices and attends, as a measure for everything else.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use crate::machine;
use crate::statistics::Summary;

/// The first ones choose kernels and make handles.
const WARM_UP: usize = 4;
const RUNS: usize = 8;

/// TFLOP/s: medians of several runs over random values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ceiling {
    /// A product of large square matrices.
    pub(crate) gemm: f64,
    /// Attention of as many positions to one another, with the model's heads.
    pub(crate) attention: f64,
}

impl Ceiling {
    /// For attention with `heads` heads of `width` channels.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub(crate) fn measure(device: Device, kind: Kind, heads: i64, width: i64) -> Result<Self> {
        let random =
            |shape: &[i64]| Tensor::f_randn(shape, (Kind::Float, device)).and_then(|x| x.f_to_kind(kind));
        let n: i64 = if device.is_cuda() { 8192 } else { 1024 };
        let (a, b) = (random(&[n, n])?, random(&[n, n])?);
        let gemm = rate(device, 2.0 * (n as f64).powi(3), || Ok(a.f_matmul(&b)?))?;
        let shape = [1, heads, n / 2, width];
        let (q, k, v) = (random(&shape)?, random(&shape)?, random(&shape)?);
        let attend = || {
            Ok(Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false)?)
        };
        let positions = shape[2] as f64;
        let attention = rate(device, 4.0 * positions * positions * (heads * width) as f64, attend)?;
        Ok(Self { gemm, attention })
    }
}

fn rate(device: Device, flops: f64, work: impl Fn() -> Result<Tensor>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..WARM_UP + RUNS {
        let (ms, _) = tch::no_grad(|| machine::ms(device, &work))?;
        times.push(ms);
    }
    Ok(flops / Summary::of(times.split_off(WARM_UP)).median / 1e9)
}
