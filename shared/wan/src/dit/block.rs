//! One transformer block: self-attention, cross-attention and feed-forward, the first and last modulated by time.

use tch::{TchError, Tensor};

use super::attention::{CrossAttention, SelfAttention, SelfAttentionPass};
use super::cache::KvCache;
use super::load::{Linear, Loader, RowParallel};
use super::residual::{Norm, Residual};
use super::{DitError, Tp};
use crate::config::DitConfig;
use crate::weights::WeightsError;

/// A block; tokens are `[F, S, dim]`, frame by frame.
#[derive(Debug)]
pub struct Block {
    pub self_attn: SelfAttention,
    pub cross_attn: CrossAttention,
    pub ffn: FeedForward,
    norm3: (Tensor, Tensor),
    /// `[1, 6, dim]`
    modulation: Tensor,
    eps: f64,
}

/// What a block does with the timesteps of a pass.
#[derive(Debug)]
pub struct Modulations {
    attention: Modulation,
    feed_forward: Modulation,
}

/// Shift, scale and gate of a modulated layer, `[T, 1, dim]` each: one row for each frame, or one for all.
#[derive(Debug)]
struct Modulation {
    shift: Tensor,
    /// `1 + scale`
    scale: Tensor,
    gate: Tensor,
}

impl Modulations {
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.attention, &self.feed_forward]
            .into_iter()
            .flat_map(|part| [&part.shift, &part.scale, &part.gate])
    }
}

impl Block {
    pub(super) fn load(config: &DitConfig, loader: &Loader, layer: usize) -> Result<Self, WeightsError> {
        let (dim, name) = (config.dim, format!("blocks.{layer}"));
        let norm3 = |part: &str| loader.whole(&format!("{name}.norm3.{part}"), &[dim]);
        Ok(Self {
            self_attn: SelfAttention::load(config, loader, &format!("{name}.self_attn"), layer)?,
            cross_attn: CrossAttention::load(config, loader, &format!("{name}.cross_attn"))?,
            ffn: FeedForward::load(config, loader, &format!("{name}.ffn"))?,
            norm3: (norm3("weight")?, norm3("bias")?),
            modulation: loader.whole(&format!("{name}.modulation"), &[1, 6, dim])?,
            eps: config.eps,
        })
    }

    /// Modulations of self-attention and feed-forward from the projected time `[T, 6, dim]`.
    ///
    /// # Errors
    /// The device has no memory for them.
    pub fn modulations(&self, e0: &Tensor) -> Result<Modulations, TchError> {
        let rows = self.modulation.f_add(e0)?;
        let part = |i: i64| -> Result<Modulation, TchError> {
            let row = |j: i64| rows.f_narrow(1, 3 * i + j, 1);
            Ok(Modulation { shift: row(0)?, scale: row(1)?.f_add_scalar(1.0)?, gate: row(2)? })
        };
        Ok(Modulations { attention: part(0)?, feed_forward: part(1)? })
    }

    /// Runs the block on `x` `[F, S, dim]`. `time` has one row for all frames or one for each; `text` are this
    /// layer's cached text keys and values.
    ///
    /// # Errors
    /// A rank is gone, out of step or late; the device has no memory.
    pub fn forward(
        &self,
        x: &mut Residual,
        time: &Modulations,
        text: &(Tensor, Tensor),
        pass: &SelfAttentionPass,
        cache: &mut KvCache,
        tp: &Tp,
    ) -> Result<(), DitError> {
        self.add_self_attn(x, time, pass, cache, tp)?;
        self.add_cross_attn(x, text, tp)?;
        self.add_ffn(x, time, tp)
    }

    /// The first third of [`Self::forward`].
    ///
    /// # Errors
    /// As for [`Self::forward`].
    pub fn add_self_attn(
        &self,
        x: &mut Residual,
        time: &Modulations,
        pass: &SelfAttentionPass,
        cache: &mut KvCache,
        tp: &Tp,
    ) -> Result<(), DitError> {
        let (size, time) = (x.size(), &time.attention);
        let attended = sequence(&x.norm(self.modulated(time))?)?;
        let attended = self.self_attn.forward(&attended, pass, cache, tp)?;
        Ok(x.add(attended.f_view(size.as_slice())?, Some(&time.gate))?)
    }

    /// The beginning of [`Self::forward`]: leaves the block's keys and values in the cache, and `x` as it was.
    ///
    /// # Errors
    /// As for [`Self::forward`].
    pub fn fill_cache(
        &self,
        x: &mut Residual,
        time: &Modulations,
        pass: &SelfAttentionPass,
        cache: &mut KvCache,
        tp: &Tp,
    ) -> Result<(), DitError> {
        self.self_attn.fill_cache(&sequence(&x.norm(self.modulated(&time.attention))?)?, pass, cache, tp)
    }

    /// The second third of [`Self::forward`].
    ///
    /// # Errors
    /// As for [`Self::forward`].
    pub fn add_cross_attn(&self, x: &mut Residual, text: &(Tensor, Tensor), tp: &Tp) -> Result<(), DitError> {
        let size = x.size();
        let (scale, shift) = (&self.norm3.0, &self.norm3.1);
        let crossed = sequence(&x.norm(Norm { scale, shift, eps: self.eps })?)?;
        let crossed = self.cross_attn.forward(&crossed, text, tp)?;
        Ok(x.add(crossed.f_view(size.as_slice())?, None)?)
    }

    /// The last third of [`Self::forward`].
    ///
    /// # Errors
    /// As for [`Self::forward`].
    pub fn add_ffn(&self, x: &mut Residual, time: &Modulations, tp: &Tp) -> Result<(), DitError> {
        let time = &time.feed_forward;
        let fed = self.ffn.forward(&x.norm(self.modulated(time))?, tp)?;
        Ok(x.add(fed, Some(&time.gate))?)
    }

    fn modulated<'a>(&self, time: &'a Modulation) -> Norm<'a> {
        Norm { scale: &time.scale, shift: &time.shift, eps: self.eps }
    }
}

/// `[1, F * S, dim]` of tokens `[F, S, dim]`.
fn sequence(x: &Tensor) -> Result<Tensor, TchError> {
    let width = x.size().last().copied().unwrap_or(0);
    x.f_reshape([1, -1, width])
}

/// Linear, GELU (tanh form), linear.
#[derive(Debug)]
pub struct FeedForward {
    up: Linear,
    down: RowParallel,
    gelu_in_product: bool,
}

impl FeedForward {
    fn load(config: &DitConfig, loader: &Loader, name: &str) -> Result<Self, WeightsError> {
        Ok(Self {
            up: loader.columns(&[format!("{name}.0")], config.ffn_dim, config.dim)?,
            down: loader.rows(&format!("{name}.2"), config.dim, config.ffn_dim)?,
            gelu_in_product: loader.ops.gelu_in_product(),
        })
    }

    /// Output for `x` `[..., dim]`, summed over the ranks.
    ///
    /// # Errors
    /// A rank is gone, out of step or late; the device has no memory.
    pub fn forward(&self, x: &Tensor, tp: &Tp) -> Result<Tensor, DitError> {
        let hidden = self.up.forward_gelu(x, self.gelu_in_product)?;
        self.down.forward(&hidden, tp)
    }
}
