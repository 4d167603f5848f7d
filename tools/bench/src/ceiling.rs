//! How fast this very device multiplies matrices and attends, as a measure for everything else.

use std::time::{Duration, Instant};

use anyhow::Result;
use tch::{Device, Kind, Tensor};
use torch_extra::Event;
use wan::dit::Ops;

use crate::machine;
use crate::statistics::Summary;

/// How long a GPU multiplies on end before its power limit has set its clock; as long again is measured.
const SUSTAINED: Duration = Duration::from_secs(1);
/// Products of one measurement then, so that the GPU does not wait for the host.
const BATCH: usize = 16;

/// The first ones choose kernels and make handles.
const WARM_UP: usize = 4;
const RUNS: usize = 8;

/// TFLOP/s: medians of several runs over random values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ceiling {
    /// A product of large square matrices.
    pub(crate) gemm: f64,
    /// The same on and on, at the clock that the GPU's power limit leaves it; `None` on a CPU.
    pub(crate) gemm_sustained: Option<f64>,
    /// Attention of as many positions to one another, with the model's heads.
    pub(crate) attention: f64,
}

impl Ceiling {
    /// For attention with `heads` heads of `width` channels, by the implementation in effect.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub(crate) fn measure(device: Device, kind: Kind, (heads, width): (i64, i64), ops: &Ops) -> Result<Self> {
        let random =
            |shape: &[i64]| Tensor::f_randn(shape, (Kind::Float, device)).and_then(|x| x.f_to_kind(kind));
        let n: i64 = if device.is_cuda() { 8192 } else { 1024 };
        let (a, b) = (random(&[n, n])?, random(&[n, n])?);
        let (flops, multiply) = (2.0 * (n as f64).powi(3), || Ok(a.f_matmul(&b)?));
        let gemm = rate(device, flops, multiply)?;
        let gemm_sustained = device.is_cuda().then(|| sustained(device, flops, multiply)).transpose()?;
        let shape = [1, n / 2, heads, width];
        let (q, k, v) = (random(&shape)?, random(&shape)?, random(&shape)?);
        let attend = || Ok(ops.attend(&q, &k, &v, None)?);
        let positions = shape[1] as f64;
        let attention = rate(device, 4.0 * positions * positions * (heads * width) as f64, attend)?;
        Ok(Self { gemm, gemm_sustained, attention })
    }
}

fn rate(device: Device, flops: f64, work: impl Fn() -> Result<Tensor>) -> Result<f64> {
    Ok(flops / median_ms(device, work)? / 1e9)
}

/// Without pause.
fn sustained(device: Device, flops: f64, work: impl Fn() -> Result<Tensor>) -> Result<f64> {
    let (started, mut times) = (Instant::now(), Vec::new());
    let batch = || (0..BATCH).try_fold(None, |_, _| work().map(Some));
    while started.elapsed() < 2 * SUSTAINED {
        let warm = started.elapsed() < SUSTAINED;
        let ms = tch::no_grad(|| time(device, batch))?;
        if !warm {
            times.push(ms);
        }
    }
    Ok(flops * BATCH as f64 / Summary::of(times).median / 1e9)
}

/// Median time of the device over several runs.
///
/// # Errors
/// Those of `work`, and of the device.
pub(crate) fn median_ms(device: Device, work: impl Fn() -> Result<Tensor>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..WARM_UP + RUNS {
        times.push(tch::no_grad(|| time(device, &work))?);
    }
    Ok(Summary::of(times.split_off(WARM_UP)).median)
}

/// Milliseconds of the device.
fn time<T>(device: Device, work: impl Fn() -> Result<T>) -> Result<f64> {
    if !device.is_cuda() {
        return Ok(machine::ms(device, work)?.0);
    }
    let start = Event::record(device)?;
    let _result = work()?;
    Ok(start.ms_until(&Event::record(device)?)?)
}
