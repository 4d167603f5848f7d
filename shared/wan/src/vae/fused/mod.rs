//! What stands between two convolutions, on a GPU in bf16: one kernel where the tensor operations make many passes over
//! the pixels. The kernels are in `kernels.cu`.

use std::ptr;
use std::sync::Arc;

use device::{Argument, CompileError, Kernel};
use tch::{Device, Kind, Tensor};

use crate::kernels::{FusedError, Kernels, PerGpu, WARP, WIDTH, mismatch, small};

/// CUDA C++ of the kernels.
pub const SOURCE: &str = concat!(include_str!("../../kernels/vectors.cu"), include_str!("kernels.cu"));

/// Loads of one thread: `VECTORS` of the source.
const VECTORS: i64 = 3;
const THREADS: u32 = 256;

/// The kernels, on one GPU.
#[derive(Debug)]
pub struct Fused {
    kernels: Kernels,
    norm_silu: Kernel,
    add: Kernel,
}

/// What [`Fused::norm_silu`] works on, bf16 and contiguous.
#[derive(Clone, Copy, Debug)]
pub struct NormSilu<'a> {
    /// `[T, H, W, C]`
    pub input: &'a Tensor,
    /// `[C]`, added to the input before it is normalised.
    pub bias: Option<&'a Tensor>,
    /// `[C]`, which every normalised pixel is multiplied by.
    pub scale: &'a Tensor,
    /// Of the shape of the input. Overwritten.
    pub output: &'a Tensor,
}

impl Fused {
    /// The kernels for `device`, compiled on the first call of the process.
    ///
    /// # Errors
    /// Without NVRTC, or for a GPU that the source does not compile for; without such a GPU.
    pub fn on(device: Device) -> Result<Arc<Self>, String> {
        static MADE: PerGpu<Fused> = PerGpu::new();
        MADE.get(device, Self::load)
    }

    fn load(index: usize) -> Result<Self, CompileError> {
        let kernels = Kernels::load(index, SOURCE)?;
        let (norm_silu, add) = (kernels.get(c"norm_silu")?, kernels.get(c"add")?);
        Ok(Self { kernels, norm_silu, add })
    }

    /// Whether pixels have so many channels as the kernels can have.
    pub fn fits(channels: i64) -> bool {
        channels % WIDTH == 0 && channels <= WIDTH * VECTORS * i64::from(WARP)
    }

    /// SiLU of `v / max(|v|, 1e-12) * scale` for each pixel `v` of `input + bias`.
    ///
    /// # Errors
    /// A tensor has another shape, dtype, layout or device; the launch fails.
    pub fn norm_silu(&self, work: NormSilu) -> Result<(), FusedError> {
        let NormSilu { input, bias, scale, output } = work;
        let size = input.size();
        let channels = channels(&size)?;
        let pixels = input.numel() as i64 / channels;
        let row = |what, row| self.kernels.whole(what, row, &[channels], Kind::BFloat16);
        let lanes = lanes(channels);
        let arguments = [
            self.kernels.whole("input", input, &size, Kind::BFloat16)?,
            bias.map_or(Ok(Argument::Pointer(ptr::null())), |bias| row("bias", bias))?,
            row("scale", scale)?,
            self.kernels.whole("output", output, &size, Kind::BFloat16)?,
            Argument::I32(small(pixels)),
            Argument::I32(small(channels)),
            Argument::I32(small(lanes)),
        ];
        let blocks = (pixels * lanes + i64::from(THREADS) - 1) / i64::from(THREADS);
        // SAFETY: as the kernel declares them; shapes, dtypes and device were checked, and the tensors outlive the launch
        // in the order of the stream.
        unsafe { self.kernels.launch(self.norm_silu, (blocks, 1), THREADS, &arguments) }
    }

    /// `sum += added + bias`: `[T, H, W, C]` twice and `[C]`, bf16 and contiguous.
    ///
    /// # Errors
    /// A tensor has another shape, dtype, layout or device; the launch fails.
    pub fn add(&self, sum: &Tensor, added: &Tensor, bias: &Tensor) -> Result<(), FusedError> {
        let size = sum.size();
        let channels = channels(&size)?;
        let vectors = sum.numel() as i64 / WIDTH;
        let arguments = [
            self.kernels.whole("sum", sum, &size, Kind::BFloat16)?,
            self.kernels.whole("added", added, &size, Kind::BFloat16)?,
            self.kernels.whole("bias", bias, &[channels], Kind::BFloat16)?,
            Argument::I32(small(vectors)),
            Argument::I32(small(channels)),
        ];
        let blocks = (vectors + i64::from(THREADS) - 1) / i64::from(THREADS);
        // SAFETY: as for the other kernel.
        unsafe { self.kernels.launch(self.add, (blocks, 1), THREADS, &arguments) }
    }
}

/// The last of four dimensions, if the kernels can have as many channels.
fn channels(size: &[i64]) -> Result<i64, FusedError> {
    match *size {
        [_, _, _, channels] if channels > 0 && Fused::fits(channels) => Ok(channels),
        _ => {
            let most = WIDTH * VECTORS * i64::from(WARP);
            let expected = format!("[T, H, W, C], C a multiple of 8 up to {most}");
            Err(mismatch("pixels", &expected, format!("{size:?}")))
        }
    }
}

/// Threads that take one pixel.
fn lanes(channels: i64) -> i64 {
    let needed = (channels / WIDTH + VECTORS - 1) / VECTORS;
    needed.max(1).cast_unsigned().next_power_of_two().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MODEL_NAMES, ModelConfig};
    use crate::kernels::assert_compiles;

    #[test]
    fn the_source_has_the_widths_that_launches_count_with() {
        for (name, value) in [("VECTORS", VECTORS), ("WIDTH", WIDTH)] {
            assert!(SOURCE.contains(&format!("constexpr int {name} = {value};")), "{name}");
        }
    }

    #[test]
    fn a_pixel_has_threads_for_all_its_channels_and_never_more_than_a_warp() {
        for (channels, expected) in
            [(8, 1), (24, 1), (32, 2), (64, 4), (96, 4), (192, 8), (384, 16), (768, 32)]
        {
            assert!(Fused::fits(channels), "{channels}");
            assert_eq!(lanes(channels), expected, "{channels}");
            assert!(lanes(channels) * VECTORS * WIDTH >= channels, "{channels}");
        }
        assert!(!Fused::fits(4) && !Fused::fits(100) && !Fused::fits(776));
    }

    #[test]
    fn every_level_of_the_models_that_need_a_gpu_fits() {
        for name in MODEL_NAMES.iter().filter(|name| name.starts_with("wan-")) {
            let vae = ModelConfig::named(name).unwrap().vae;
            assert!(vae.dim_mult.iter().all(|mult| Fused::fits(vae.dim * mult)), "{name}");
        }
    }

    #[test]
    #[ignore = "needs NVRTC on the library path, and no GPU"]
    fn the_source_compiles_for_every_gpu_from_ampere_on() {
        assert_compiles(SOURCE);
    }

    #[test]
    fn a_cpu_has_no_kernels() {
        assert_eq!(Fused::on(Device::Cpu).unwrap_err(), "Cpu is none of the 0 GPUs");
    }
}
