//! Self-attention over the KV cache and cross-attention over the text, for the heads of one rank.

use tch::{TchError, Tensor};

use super::cache::{KvCache, KvPlan, KvSlot};
use super::load::{Linear, Loader, RowParallel};
use super::mask::Mask;
use super::norm::{ShardedRmsNorm, sum_of_squares};
use super::{DitError, Ops, Tp};
use crate::config::DitConfig;
use crate::rope::rotate;
use crate::weights::WeightsError;

/// Heads of a rank and their width.
#[derive(Clone, Copy, Debug)]
struct Heads {
    count: i64,
    width: i64,
}

impl Heads {
    fn of(config: &DitConfig, loader: &Loader) -> Self {
        Self { count: config.num_heads / i64::from(loader.shard.world), width: config.head_dim() }
    }

    fn channels(self) -> i64 {
        self.count * self.width
    }
}

/// What all layers of one pass share.
pub struct SelfAttentionPass<'a> {
    /// Rotations of the pass's tokens, see [`crate::rope::Rope`].
    pub rotations: &'a Tensor,
    pub plan: &'a KvPlan,
    pub mask: Option<&'a Mask>,
}

/// Self-attention of one block.
#[derive(Debug)]
pub struct SelfAttention {
    /// Index of the block, which is that of its keys in the cache.
    layer: usize,
    qkv: Linear,
    norm: ShardedRmsNorm,
    o: RowParallel,
    heads: Heads,
    ops: Ops,
}

impl SelfAttention {
    pub(super) fn load(
        config: &DitConfig,
        loader: &Loader,
        name: &str,
        layer: usize,
    ) -> Result<Self, WeightsError> {
        let dim = config.dim;
        let names = ["q", "k", "v"].map(|part| format!("{name}.{part}"));
        Ok(Self {
            layer,
            qkv: loader.columns(&names, dim, dim)?,
            norm: load_norm(config, loader, name, &["norm_q", "norm_k"])?,
            o: loader.rows(&format!("{name}.o"), dim, dim)?,
            heads: Heads::of(config, loader),
            ops: loader.ops.clone(),
        })
    }

    /// Output for `x` `[1, n, dim]`, summed over the ranks. Stores the pass's keys and values in `cache`.
    ///
    /// # Errors
    /// A rank is gone, out of step or late; the device has no memory.
    pub fn forward(
        &self,
        x: &Tensor,
        pass: &SelfAttentionPass,
        cache: &mut KvCache,
        tp: &Tp,
    ) -> Result<Tensor, DitError> {
        let (q, slot) = self.project(x, pass, cache, tp)?;
        self.o.forward(&self.ops.attend(&q, &slot.keys, &slot.values, pass.mask)?, tp)
    }

    /// Stores the keys and values of [`Self::forward`], and no more.
    ///
    /// # Errors
    /// As for [`Self::forward`].
    pub fn fill_cache(
        &self,
        x: &Tensor,
        pass: &SelfAttentionPass,
        cache: &mut KvCache,
        tp: &Tp,
    ) -> Result<(), DitError> {
        self.project(x, pass, cache, tp).map(drop)
    }

    /// Queries `[1, n, heads, d]` of `x`, and the slot with its keys and values in it.
    fn project(
        &self,
        x: &Tensor,
        pass: &SelfAttentionPass,
        cache: &mut KvCache,
        tp: &Tp,
    ) -> Result<(Tensor, KvSlot), DitError> {
        let qkv = self.qkv.forward(x)?;
        let mut slot = cache.open(self.layer, pass.plan)?;
        let q = self.place(&qkv, pass.rotations, &mut slot, tp)?;
        Ok((q, slot))
    }

    /// Queries `[1, n, heads, d]` of projected tokens `[1, n, 3 * heads * d]`; keys and values go into the slot. Queries
    /// and keys are normalised and rotated.
    fn place(
        &self,
        qkv: &Tensor,
        rotations: &Tensor,
        slot: &mut KvSlot,
        tp: &Tp,
    ) -> Result<Tensor, DitError> {
        let heads = self.heads;
        let (tokens, channels) = (qkv.size()[1], heads.channels());
        if let Some(fused) = self.ops.fused() {
            let q = slot.new_keys.f_empty_like()?;
            let outputs = [&q, &slot.new_keys, &slot.new_values];
            self.norm.forward_into(fused, qkv, Some(rotations), &outputs, tp)?;
            return Ok(q);
        }
        let qk = qkv.f_narrow(2, 0, 2 * channels)?.f_unflatten(2, [2, channels])?;
        let qk = self.norm.forward(&qk, tp)?.f_view([1, tokens, 2 * heads.count, heads.width])?;
        let qk = rotate(&qk, rotations)?;
        let v = qkv.f_narrow(2, 2 * channels, channels)?.f_unflatten(2, [heads.count, heads.width])?;
        let (q, k) = (qk.f_narrow(2, 0, heads.count)?, qk.f_narrow(2, heads.count, heads.count)?);
        slot.fill(&k, &v)?;
        Ok(q)
    }
}

/// Cross-attention of one block.
#[derive(Debug)]
pub struct CrossAttention {
    q: Linear,
    kv: Linear,
    norm_q: ShardedRmsNorm,
    norm_k: ShardedRmsNorm,
    o: RowParallel,
    heads: Heads,
    ops: Ops,
}

impl CrossAttention {
    pub(super) fn load(config: &DitConfig, loader: &Loader, name: &str) -> Result<Self, WeightsError> {
        let dim = config.dim;
        let part = |part: &str| format!("{name}.{part}");
        Ok(Self {
            q: loader.columns(&[part("q")], dim, dim)?,
            kv: loader.columns(&[part("k"), part("v")], dim, dim)?,
            norm_q: load_norm(config, loader, name, &["norm_q"])?,
            norm_k: load_norm(config, loader, name, &["norm_k"])?,
            o: loader.rows(&part("o"), dim, dim)?,
            heads: Heads::of(config, loader),
            ops: loader.ops.clone(),
        })
    }

    /// Keys before their norm, values, and this rank's sums of squares of the keys, for text tokens `[1, L, dim]`. The
    /// sums of all layers travel in one all-reduce, so the norm is a second step.
    pub(super) fn project_text(&self, text: &Tensor) -> Result<(Tensor, Tensor, Tensor), TchError> {
        let channels = self.heads.channels();
        let kv = self.kv.forward(text)?;
        let k = kv.f_narrow(2, 0, channels)?.f_unsqueeze(2)?;
        let v = self.split(&kv.f_narrow(2, channels, channels)?.f_contiguous()?)?;
        let sums = sum_of_squares(&k)?;
        Ok((k, v, sums))
    }

    /// Keys `[1, L, heads, d]` from what [`Self::project_text`] gave and the sums over all ranks.
    pub(super) fn text_keys(&self, k: &Tensor, sums: &Tensor) -> Result<Tensor, TchError> {
        self.split(&self.norm_k.apply(k, sums)?.f_squeeze_dim(2)?)
    }

    /// Output for `x` `[1, n, dim]`, summed over the ranks, given a layer's text keys and values.
    ///
    /// # Errors
    /// A rank is gone, out of step or late; the device has no memory.
    pub fn forward(&self, x: &Tensor, text: &(Tensor, Tensor), tp: &Tp) -> Result<Tensor, DitError> {
        let q = self.q.forward(x)?;
        let q = match self.ops.fused() {
            Some(fused) => {
                let normed = self.split(&q.f_empty_like()?)?;
                self.norm_q.forward_into(fused, &q, None, &[&normed], tp)?;
                normed
            }
            None => self.split(&self.norm_q.forward(&q.f_unsqueeze(2)?, tp)?.f_squeeze_dim(2)?)?,
        };
        self.o.forward(&self.ops.attend(&q, &text.0, &text.1, None)?, tp)
    }

    fn split(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_unflatten(2, [self.heads.count, self.heads.width])
    }
}

fn load_norm(
    config: &DitConfig,
    loader: &Loader,
    name: &str,
    parts: &[&str],
) -> Result<ShardedRmsNorm, WeightsError> {
    let weights = parts.iter().map(|part| loader.part(&format!("{name}.{part}.weight"), &[config.dim], 0));
    let weights = weights.collect::<Result<Vec<_>, _>>()?;
    ShardedRmsNorm::new(&weights, config.dim, config.eps).map_err(|e| super::load::torch(name, &e))
}
