//! What surrounds the blocks: patches, time and text in, flow out. Replicated on every rank.

use tch::{Device, Kind, TchError, Tensor};

use super::load::{Linear, Loader};
use super::norm::layer_norm;
use crate::config::DitConfig;
use crate::weights::WeightsError;

/// Embedded timesteps; `T` is 1 when all frames share one, else the number of frames.
#[derive(Debug)]
pub struct TimeEmbedding {
    /// `[T, dim]`, what the head uses.
    pub e: Tensor,
    /// `[T, 6, dim]`, what the blocks use.
    pub e0: Tensor,
}

/// Cosines, then sines, of `t * 10000^(-i / half)`: `[T, freq_dim]` f32, computed in f64.
///
/// # Errors
/// The device has no memory for it.
pub fn time_sinusoid(timesteps: &[f64], freq_dim: i64, device: Device) -> Result<Tensor, TchError> {
    let half = freq_dim / 2;
    let mut values = Vec::with_capacity(timesteps.len() * usize::try_from(freq_dim).unwrap_or(0));
    for t in timesteps {
        let angle = |i: i64| t * 10_000_f64.powf(-(i as f64) / half as f64);
        values.extend((0..half).map(|i| angle(i).cos() as f32));
        values.extend((0..half).map(|i| angle(i).sin() as f32));
    }
    Tensor::f_from_slice(&values)?.f_view([timesteps.len() as i64, 2 * half])?.f_to_device(device)
}

/// The input embeddings.
#[derive(Debug)]
pub struct Embeddings {
    /// Convolution whose kernel is its stride, as a product over the values of a patch.
    patch: Linear,
    time: (Linear, Linear),
    time_projection: Linear,
    text: (Linear, Linear),
    text_len: i64,
    freq_dim: i64,
    patch_size: [i64; 3],
    options: (Kind, Device),
}

impl Embeddings {
    pub(super) fn load(config: &DitConfig, loader: &Loader) -> Result<Self, WeightsError> {
        let dim = config.dim;
        let [pt, ph, pw] = config.patch_size;
        let kernel = loader.whole("patch_embedding.weight", &[dim, config.in_dim, pt, ph, pw])?;
        let kernel = kernel.f_flatten(1, -1).map_err(|e| super::load::torch("patch_embedding.weight", &e))?;
        Ok(Self {
            patch: Linear::new(kernel, loader.whole("patch_embedding.bias", &[dim])?),
            time: (
                loader.linear("time_embedding.0", dim, config.freq_dim)?,
                loader.linear("time_embedding.2", dim, dim)?,
            ),
            time_projection: loader.linear("time_projection.1", 6 * dim, dim)?,
            text: (
                loader.linear("text_embedding.0", dim, config.text_dim)?,
                loader.linear("text_embedding.2", dim, dim)?,
            ),
            text_len: config.text_len,
            freq_dim: config.freq_dim,
            patch_size: config.patch_size,
            options: (loader.kind, loader.device),
        })
    }

    /// Tokens `[F, S, dim]` of latents `[1, F, C, H, W]`.
    ///
    /// # Errors
    /// The latents cannot be cut into patches.
    pub fn patches(&self, latents: &Tensor) -> Result<Tensor, TchError> {
        let size = latents.size();
        let [_, frames, channels, height, width] = size[..] else {
            return Err(TchError::Shape(format!("latents: expected [1, F, C, H, W], got {size:?}")));
        };
        let [_, ph, pw] = self.patch_size;
        let (rows, columns) = (height / ph, width / pw);
        let latents = latents.f_to_device(self.options.1)?.f_to_kind(self.options.0)?;
        let patches =
            latents.f_reshape([frames, channels, rows, ph, columns, pw])?.f_permute([0, 2, 4, 1, 3, 5])?;
        self.patch.forward(&patches.f_reshape([frames, rows * columns, channels * ph * pw])?)
    }

    /// Embeds one timestep for each of the `T` rows.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub fn time(&self, timesteps: &[f64]) -> Result<TimeEmbedding, TchError> {
        let sinusoid = time_sinusoid(timesteps, self.freq_dim, self.options.1)?.f_to_kind(self.options.0)?;
        let e = self.time.1.forward(&self.time.0.forward(&sinusoid)?.f_silu_()?)?;
        let e0 = self.time_projection.forward(&e.f_silu()?)?.f_unflatten(1, [6, -1])?;
        Ok(TimeEmbedding { e, e0 })
    }

    /// Text tokens `[1, text_len, dim]` of an embedded prompt `[1, L, text_dim]` with `L <= text_len`. Rows past the
    /// prompt count as zeros and take part in attention.
    ///
    /// # Errors
    /// The prompt is longer, or of another width.
    pub fn text(&self, prompt: &Tensor) -> Result<Tensor, TchError> {
        let prompt = prompt.f_to_device(self.options.1)?.f_to_kind(self.options.0)?;
        let missing = self.text_len - prompt.size()[1];
        let prompt = if missing > 0 { prompt.f_constant_pad_nd([0, 0, 0, missing])? } else { prompt };
        self.text.1.forward(&self.text.0.forward(&prompt)?.f_gelu_("tanh")?)
    }
}

/// The output layer.
#[derive(Debug)]
pub struct Head {
    linear: Linear,
    /// `[1, 2, dim]`
    modulation: Tensor,
    out_dim: i64,
    patch_size: [i64; 3],
    eps: f64,
}

impl Head {
    pub(super) fn load(config: &DitConfig, loader: &Loader) -> Result<Self, WeightsError> {
        let values = config.patch_size.iter().product::<i64>() * config.out_dim;
        Ok(Self {
            linear: loader.linear("head.head", values, config.dim)?,
            modulation: loader.whole("head.modulation", &[1, 2, config.dim])?,
            out_dim: config.out_dim,
            patch_size: config.patch_size,
            eps: config.eps,
        })
    }

    /// Flow `[1, F, C, H, W]` from tokens `[F, S, dim]` on a grid of `rows` x `columns`; `e` is the embedded time
    /// `[T, dim]`, not the projected one.
    ///
    /// # Errors
    /// The tokens do not fill the grid.
    pub fn forward(&self, x: &Tensor, e: &Tensor, rows: i64, columns: i64) -> Result<Tensor, TchError> {
        let m = self.modulation.f_add(&e.f_unsqueeze(1)?)?;
        let (shift, scale) = (m.f_narrow(1, 0, 1)?, m.f_narrow(1, 1, 1)?.f_add_scalar(1.0)?);
        let y = self.linear.forward(&shift.f_addcmul(&layer_norm(x, None, self.eps)?, &scale)?)?;
        let [_, ph, pw] = self.patch_size;
        let frames = x.size()[0];
        let y = y.f_view([frames, rows, columns, ph, pw, self.out_dim])?.f_permute([0, 5, 1, 3, 2, 4])?;
        y.f_reshape([1, frames, self.out_dim, rows * ph, columns * pw])
    }
}
