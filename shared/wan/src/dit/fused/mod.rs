//! A block's elementwise work on a GPU in bf16: one kernel where the tensor operations make many passes over the tokens.
//! The kernels are in `kernels.cu`; they run on libtorch's current stream, so they are ordered with its operations.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::ptr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use device::{Argument, CompileError, DriverFailure, Kernel, Program};
use tch::{Device, Kind, Tensor};

use crate::config::DitConfig;

/// CUDA C++ of the kernels.
pub const SOURCE: &str = include_str!("kernels.cu");

/// bf16 values of one load.
const WIDTH: i64 = 8;
/// Such loads of one thread: `VECTORS` of the source.
const VECTORS: i64 = 2;
const WARP: u32 = 32;
const MAX_THREADS: u32 = 1024;

/// Why a kernel was not launched.
#[derive(Debug, thiserror::Error)]
pub enum FusedError {
    #[error("{what}: expected {expected}, got {found}")]
    Input { what: &'static str, expected: String, found: String },
    #[error(transparent)]
    Stream(#[from] torch_extra::ExtraError),
    #[error(transparent)]
    Driver(#[from] DriverFailure),
}

/// The kernels, on one GPU.
#[derive(Debug)]
pub struct Fused {
    device: Device,
    program: Program,
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
        type Made = BTreeMap<usize, Result<Arc<Fused>, String>>;
        static MADE: LazyLock<Mutex<Made>> = LazyLock::new(Mutex::default);
        let there = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        let index = match device {
            Device::Cuda(index) if index < there => index,
            _ => return Err(format!("{device:?} is none of the {there} GPUs")),
        };
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        made.entry(index)
            .or_insert_with(|| Self::load(index).map(Arc::new).map_err(|error| error.to_string()))
            .clone()
    }

    fn load(index: usize) -> Result<Self, CompileError> {
        let source = CString::new(SOURCE).unwrap_or_default();
        let program = Program::load(index, &source)?;
        let (norm_rotate, add_norm) = (program.kernel(c"norm_rotate")?, program.kernel(c"add_norm")?);
        let merge = program.kernel(c"merge")?;
        Ok(Self { device: Device::Cuda(index), program, norm_rotate, add_norm, merge })
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
        let input = self.aligned("input", input, Kind::BFloat16)?;
        if stride % WIDTH != 0 {
            return Err(mismatch("input", "rows at multiples of 8 values", format!("stride {stride}")));
        }
        let weight = self.whole("weight", weight, &[normed, channels], Kind::BFloat16)?;
        let sums = sums.map(|sums| self.whole("sums", sums, &[1, tokens, normed], Kind::Float));
        let shape = [tokens, 1, width / 2];
        let rotations =
            rotations.map(|turn| self.whole("rotations", turn, &shape, Kind::ComplexFloat)).transpose()?;
        let mut places = [Argument::Pointer(ptr::null()); 3];
        for (place, output) in places.iter_mut().zip(outputs) {
            *place = self.whole("output", output, &first, Kind::BFloat16)?;
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
        let whole = |what, tensor| self.whole(what, tensor, &size, Kind::BFloat16);
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
        let out = |part: &Part| self.whole("part", part.out, &size, Kind::BFloat16);
        let lse = |part: &Part| self.whole("log-sum-exp", part.lse, &[1, heads, tokens, 1], Kind::Float);
        let [a, b, c] = &parts;
        let arguments = [
            out(a)?,
            out(b)?,
            out(c)?,
            lse(a)?,
            lse(b)?,
            lse(c)?,
            Argument::F32(bias as f32),
            self.whole("output", output, &size, Kind::BFloat16)?,
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
        let stream = torch_extra::current_stream(self.device)?;
        let blocks = (count(tokens), count(parts));
        // SAFETY: the caller's; the stream is of this device.
        Ok(unsafe { self.program.launch(kernel, blocks, threads, stream.0, arguments) }?)
    }

    /// Place of a contiguous tensor of exactly this shape.
    fn whole(
        &self,
        what: &'static str,
        tensor: &Tensor,
        shape: &[i64],
        kind: Kind,
    ) -> Result<Argument, FusedError> {
        if tensor.size() != shape || !tensor.is_contiguous() {
            let found = format!("{:?}, strides {:?}", tensor.size(), tensor.stride());
            return Err(mismatch(what, &format!("{shape:?}, contiguous"), found));
        }
        self.aligned(what, tensor, kind)
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
        Ok((self.aligned(what, rows, Kind::BFloat16)?, Argument::I64(apart)))
    }

    /// Place of a tensor that is read in vectors of 16 bytes.
    fn aligned(&self, what: &'static str, tensor: &Tensor, kind: Kind) -> Result<Argument, FusedError> {
        let place = tensor.data_ptr();
        if (tensor.kind(), tensor.device()) != (kind, self.device) || !(place as usize).is_multiple_of(16) {
            let expected = format!("{kind:?} on {:?} at a multiple of 16 bytes", self.device);
            let found = format!("{:?} on {:?} at {place:?}", tensor.kind(), tensor.device());
            return Err(mismatch(what, &expected, found));
        }
        Ok(Argument::Pointer(place))
    }
}

fn mismatch(what: &'static str, expected: &str, found: String) -> FusedError {
    FusedError::Input { what, expected: expected.to_owned(), found }
}

fn row_count(rows: &Tensor, channels: i64) -> i64 {
    rows.numel() as i64 / channels.max(1)
}

/// Sizes of tensors that fit a GPU fit.
fn small(size: i64) -> i32 {
    i32::try_from(size).unwrap_or(-1)
}

fn count(size: i64) -> u32 {
    small(size).max(0).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let source = CString::new(SOURCE).unwrap();
        for capability in [[8, 0], [8, 9], [9, 0], [10, 0], [12, 0]] {
            let code = device::compile(&source, capability).unwrap_or_else(|error| panic!("{error}"));
            assert!(code.starts_with(b"\x7fELF"), "{capability:?}");
        }
        let error = device::compile(c"__global__ void broken(", [9, 0]).unwrap_err().to_string();
        assert!(error.contains("compute capability 9.0") && error.contains("error"), "{error}");
    }

    #[test]
    fn a_cpu_has_no_kernels() {
        assert_eq!(Fused::on(Device::Cpu).unwrap_err(), "Cpu is none of the 0 GPUs");
    }
}
