//! A block's elementwise work on a GPU in bf16: one kernel where the tensor operations make many passes over the tokens.
//! The kernels are in `kernels.cu`; they run on libtorch's current stream, so they are ordered with its operations.

use std::ptr;
use std::sync::Arc;

use device::{Argument, CompileError, Kernel};
use tch::{Device, Kind, Tensor};

use crate::config::DitConfig;
pub use crate::kernels::FusedError;
use crate::kernels::{Kernels, MAX_THREADS, PerGpu, WARP, WIDTH, count, mismatch, small};

/// CUDA C++ of the kernels.
pub const SOURCE: &str = concat!(include_str!("../../kernels/vectors.cu"), include_str!("kernels.cu"));

/// Loads of one thread: `VECTORS` of the source.
const VECTORS: i64 = 2;

/// The kernels, on one GPU.
#[derive(Debug)]
pub struct Fused {
    kernels: Kernels,
    norm_rotate: Kernel,
    add_norm: Kernel,
    merge: Kernel,
}

/// What [`Fused::norm_rotate`] works on. All are bf16 and contiguous but for what is said.
#[derive(Clone, Copy, Debug)]
pub struct NormRotate<'a> {
    /// `[1, N, >= P * C]`: the `P` parts of a row follow one another. Rows may be apart.
    pub input: &'a Tensor,
    /// `[R, C]`: the first `R` parts are divided by their root mean square and multiplied by their row; others are copied.
    pub weight: &'a Tensor,
    /// `[1, N, R]`, f32: sums of squares over all ranks; without them, those of the part.
    pub sums: Option<&'a Tensor>,
    /// Channels that a root mean square is over.
    pub dim: i64,
    pub eps: f64,
    /// `[N, 1, d/2]`, complex f32: turns the parts that have a weight.
    pub rotations: Option<&'a Tensor>,
    /// `[1, N, H, d]` with `H * d = C`, one for each of the `P` parts, 1 to 3. They are overwritten.
    pub outputs: &'a [&'a Tensor],
}

/// What [`Fused::add_norm`] works on, bf16. Of `T` rows each serves as many tokens; one may serve all where others have `T`.
#[derive(Clone, Copy, Debug)]
pub struct AddNorm<'a> {
    /// `[F, S, C]`, contiguous. Gets `gate * y` added.
    pub x: &'a Tensor,
    /// `y`, of the shape of `x` and contiguous, and its gate `[T, 1, C]`; none counts as 1.
    pub added: Option<(&'a Tensor, Option<&'a Tensor>)>,
    /// `[T, 1, C]` or `[C]`.
    pub scale: &'a Tensor,
    pub shift: &'a Tensor,
    pub eps: f64,
    /// Of the shape of `x`, contiguous. Overwritten with `layer_norm(x) * scale + shift`.
    pub normed: &'a Tensor,
}

/// Attention over some of the keys.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// `[1, N, H, d]`, bf16, contiguous.
    pub out: &'a Tensor,
    /// `[1, H, N, 1]`, f32, contiguous.
    pub lse: &'a Tensor,
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
        let (norm_rotate, add_norm) = (kernels.get(c"norm_rotate")?, kernels.get(c"add_norm")?);
        let merge = kernels.get(c"merge")?;
        Ok(Self { kernels, norm_rotate, add_norm, merge })
    }

    /// Whether a model's widths are some that the kernels can have.
    pub(super) fn fits(config: &DitConfig) -> bool {
        config.head_dim() % WIDTH == 0 && config.dim <= WIDTH * VECTORS * i64::from(MAX_THREADS)
    }

    /// RMS norm and rotation of some parts of each token's row and copies of the others, each part into its own output.
    ///
    /// # Errors
    /// A tensor has another shape, dtype, layout or device; the launch fails.
    pub fn norm_rotate(&self, work: NormRotate) -> Result<(), FusedError> {
        let NormRotate { input, weight, sums, dim, eps, rotations, outputs } = work;
        let first = outputs.first().map(|output| output.size()).unwrap_or_default();
        let [1, tokens, heads, width] = first[..] else {
            return Err(mismatch("outputs", "1 to 3 of [1, N, H, d]", format!("{first:?}")));
        };
        let (parts, channels) = (outputs.len() as i64, heads * width);
        let normed = weight.size()[0];
        let size = input.size();
        let stride = input.stride().get(1).copied().unwrap_or(0);
        let fits = size.len() == 3 && size[..2] == [1, tokens] && size[2] >= parts * channels;
        if !fits || input.stride()[2] != 1 || parts > 3 || normed > parts || width % WIDTH != 0 {
            let found = format!("{size:?} for {parts} outputs of {first:?}, {normed} normed");
            return Err(mismatch("input", "[1, N, >= P * C], rows contiguous", found));
        }
        let input = self.kernels.aligned("input", input, Kind::BFloat16)?;
        if stride % WIDTH != 0 {
            return Err(mismatch("input", "rows at multiples of 8 values", format!("stride {stride}")));
        }
        let weight = self.kernels.whole("weight", weight, &[normed, channels], Kind::BFloat16)?;
        let sums = sums.map(|sums| self.kernels.whole("sums", sums, &[1, tokens, normed], Kind::Float));
        let shape = [tokens, 1, width / 2];
        let rotations = rotations
            .map(|turn| self.kernels.whole("rotations", turn, &shape, Kind::ComplexFloat))
            .transpose()?;
        let mut places = [Argument::Pointer(ptr::null()); 3];
        for (place, output) in places.iter_mut().zip(outputs) {
            *place = self.kernels.whole("output", output, &first, Kind::BFloat16)?;
        }
        let null = Argument::Pointer(ptr::null());
        let arguments = [
            input,
            Argument::I64(stride),
            weight,
            sums.transpose()?.unwrap_or(null),
            rotations.unwrap_or(null),
            places[0],
            places[1],
            places[2],
            Argument::I32(small(normed)),
            Argument::I32(small(channels)),
            Argument::I32(small(width)),
            Argument::F32(dim as f32),
            Argument::F32(eps as f32),
        ];
        // SAFETY: as the kernel declares them; shapes, dtypes and device were checked, and the tensors outlive the launch
        // in the order of the stream.
        unsafe { self.launch(self.norm_rotate, (tokens, parts), channels, &arguments) }
    }

    /// `x += gate * y`, then the layer norm of `x` with scale and shift.
    ///
    /// # Errors
    /// A tensor has another shape, dtype, layout or device; the launch fails.
    pub fn add_norm(&self, work: AddNorm) -> Result<(), FusedError> {
        let AddNorm { x, added, scale, shift, eps, normed } = work;
        let size = x.size();
        let [frames, per_frame, channels] = size[..] else {
            return Err(mismatch("x", "[F, S, C]", format!("{size:?}")));
        };
        let tokens = frames * per_frame;
        let whole = |what, tensor| self.kernels.whole(what, tensor, &size, Kind::BFloat16);
        let null = Argument::Pointer(ptr::null());
        let (y, gate) = match added {
            None => (null, None),
            Some((y, gate)) => (whole("y", y)?, gate),
        };
        let rows = [Some(scale), Some(shift), gate].into_iter().flatten();
        let rows = rows.map(|rows| row_count(rows, channels)).max().unwrap_or(0);
        let gate = gate.map(|gate| self.rows("gate", gate, rows, channels)).transpose()?;
        let (gate, gate_stride) = gate.unwrap_or((null, Argument::I64(0)));
        let (scale, scale_stride) = self.rows("scale", scale, rows, channels)?;
        let (shift, shift_stride) = self.rows("shift", shift, rows, channels)?;
        if rows == 0 || tokens % rows != 0 {
            return Err(mismatch("scale", "a divisor of the tokens as rows", format!("{rows} for {tokens}")));
        }
        let arguments = [
            whole("x", x)?,
            y,
            gate,
            gate_stride,
            scale,
            scale_stride,
            shift,
            shift_stride,
            whole("normed", normed)?,
            Argument::I32(small(tokens / rows)),
            Argument::I32(small(channels)),
            Argument::F32(eps as f32),
        ];
        // SAFETY: as for the other kernel.
        unsafe { self.launch(self.add_norm, (tokens, 1), channels, &arguments) }
    }

    /// Attention over three sets of keys, from the attention over each; `bias` is added to all scores of the middle one.
    ///
    /// # Errors
    /// A tensor has another shape, dtype, layout or device; the launch fails.
    pub fn merge(&self, parts: [Part; 3], bias: f64, output: &Tensor) -> Result<(), FusedError> {
        let size = output.size();
        let [1, tokens, heads, width] = size[..] else {
            return Err(mismatch("output", "[1, N, H, d]", format!("{size:?}")));
        };
        if width % WIDTH != 0 {
            return Err(mismatch("output", "heads of a multiple of 8 channels", width.to_string()));
        }
        let out = |part: &Part| self.kernels.whole("part", part.out, &size, Kind::BFloat16);
        let lse =
            |part: &Part| self.kernels.whole("log-sum-exp", part.lse, &[1, heads, tokens, 1], Kind::Float);
        let [a, b, c] = &parts;
        let arguments = [
            out(a)?,
            out(b)?,
            out(c)?,
            lse(a)?,
            lse(b)?,
            lse(c)?,
            Argument::F32(bias as f32),
            self.kernels.whole("output", output, &size, Kind::BFloat16)?,
            Argument::I32(small(tokens)),
            Argument::I32(small(heads * width)),
            Argument::I32(small(width)),
        ];
        // SAFETY: as for the other kernels.
        unsafe { self.launch(self.merge, (tokens, 1), heads * width, &arguments) }
    }

    /// # Safety
    /// As for [`Program::launch`].
    unsafe fn launch(
        &self,
        kernel: Kernel,
        (tokens, parts): (i64, i64),
        channels: i64,
        arguments: &[Argument],
    ) -> Result<(), FusedError> {
        let (vectors, per_thread) = (count(channels / WIDTH), VECTORS as u32);
        let threads = vectors.div_ceil(per_thread).next_multiple_of(WARP);
        if channels % WIDTH != 0 || threads > MAX_THREADS {
            let most = WIDTH * VECTORS * i64::from(MAX_THREADS);
            return Err(mismatch("channels", &format!("multiples of 8 up to {most}"), channels.to_string()));
        }
        // SAFETY: the caller's.
        unsafe { self.kernels.launch(kernel, (tokens, parts), threads, arguments) }
    }

    /// Place and row stride of scale, shift or gate, which have `count` rows or one.
    fn rows(
        &self,
        what: &'static str,
        rows: &Tensor,
        count: i64,
        channels: i64,
    ) -> Result<(Argument, Argument), FusedError> {
        let (size, stride) = (rows.size(), rows.stride());
        let own = row_count(rows, channels);
        let fits = size == [own, 1, channels] || size == [channels];
        let fits = fits && (own == 1 || own == count);
        let apart = if own == 1 { 0 } else { stride[0] };
        if !fits || stride.last() != Some(&1) || apart % WIDTH != 0 {
            let found = format!("{size:?}, strides {stride:?}");
            return Err(mismatch(what, &format!("[{count}, 1, {channels}], rows contiguous"), found));
        }
        Ok((self.kernels.aligned(what, rows, Kind::BFloat16)?, Argument::I64(apart)))
    }
}

fn row_count(rows: &Tensor, channels: i64) -> i64 {
    rows.numel() as i64 / channels.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::assert_compiles;

    #[test]
    fn the_source_has_the_widths_that_launches_count_with() {
        for (name, value) in [("VECTORS", VECTORS), ("WIDTH", WIDTH)] {
            assert!(SOURCE.contains(&format!("constexpr int {name} = {value};")), "{name}");
        }
    }

    #[test]
    fn every_model_that_there_is_fits() {
        for name in crate::config::MODEL_NAMES {
            assert!(Fused::fits(&crate::config::ModelConfig::named(name).unwrap().dit), "{name}");
        }
    }

    #[test]
    #[ignore = "needs NVRTC on the library path, and no GPU"]
    fn the_source_compiles_for_every_gpu_from_ampere_on() {
        assert_compiles(SOURCE);
        let error = device::compile(c"__global__ void broken(", [9, 0]).unwrap_err().to_string();
        assert!(error.contains("compute capability 9.0") && error.contains("error"), "{error}");
    }

    #[test]
    fn a_cpu_has_no_kernels() {
        assert_eq!(Fused::on(Device::Cpu).unwrap_err(), "Cpu is none of the 0 GPUs");
    }
}
