//! The whole transformer on one rank.

use tch::{Device, Kind, TchError, Tensor};

use super::attention::SelfAttentionPass;
use super::block::Block;
use super::cache::{KvCache, KvCacheSpec, KvPlan, TextCache};
use super::count::ForwardCount;
use super::embed::{Embeddings, Head};
use super::load::{Loader, Shard};
use super::mask::Mask;
use super::times::Times;
use super::{DitError, Ops, Residual, Tp, mask};
use crate::config::DitConfig;
use crate::rope::Rope;
use crate::weights::{TensorSource, WeightsError};

/// How the tokens of a pass meet the KV cache. Positions are in frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Attend {
    /// Stream position of the first frame, which is also its rotary position; `bias` weakens past frames other than the
    /// first of the window and the last `block_frames`, 1 does not.
    Cached { start_frame: i64, bias: f64, block_frames: i64 },
    /// The cache starts over with these frames, attention is causal between blocks, rotary positions start at 0.
    Recompute { block_frames: i64 },
}

/// One rank's shard of the causal transformer.
#[derive(Debug)]
pub struct CausalDit {
    config: DitConfig,
    shard: Shard,
    options: (Kind, Device),
    ops: Ops,
    embeddings: Embeddings,
    blocks: Vec<Block>,
    head: Head,
    rope: Rope,
    times: Times,
    forwards: ForwardCount,
}

/// What a pass is, before its tokens.
struct Pass<'a> {
    /// One for all frames, or one for each.
    timesteps: &'a [f64],
    rows: i64,
    columns: i64,
    rotations: Tensor,
    plan: KvPlan,
    mask: Option<Mask>,
}

impl Pass<'_> {
    fn attention(&self) -> SelfAttentionPass<'_> {
        SelfAttentionPass { rotations: &self.rotations, plan: &self.plan, mask: self.mask.as_ref() }
    }
}

impl CausalDit {
    /// Reads the shard's parameters under their original names onto `device` in dtype `kind`.
    ///
    /// # Errors
    /// The world size does not divide the heads (the allowed ones are named), or a parameter is missing or misshapen.
    pub fn load(
        config: &DitConfig,
        source: &dyn TensorSource,
        shard: Shard,
        device: Device,
        kind: Kind,
    ) -> Result<Self, WeightsError> {
        shard.check(config)?;
        check_supported(config)?;
        let _guard = tch::no_grad_guard();
        let ops = Ops::choose(config, device, kind);
        let loader = Loader { source, shard, device, kind, ops };
        let layers = usize::try_from(config.num_layers).unwrap_or(0);
        let blocks = (0..layers).map(|layer| Block::load(config, &loader, layer));
        Ok(Self {
            config: config.clone(),
            shard,
            options: (kind, device),
            embeddings: Embeddings::load(config, &loader)?,
            blocks: blocks.collect::<Result<_, _>>()?,
            head: Head::load(config, &loader)?,
            rope: Rope::new(config.head_dim(), device),
            times: Times::default(),
            forwards: ForwardCount::zero(device)
                .map_err(|e| super::load::torch("the count of forwards", &e))?,
            ops: loader.ops,
        })
    }

    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    pub fn shard(&self) -> Shard {
        self.shard
    }

    /// Dtype of the activations and the device they live on.
    pub fn options(&self) -> (Kind, Device) {
        self.options
    }

    /// The implementations in effect.
    pub fn ops(&self) -> &Ops {
        &self.ops
    }

    pub fn embeddings(&self) -> &Embeddings {
        &self.embeddings
    }

    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Forward passes completed since loading, counted by the device as part of each.
    pub fn forwards(&self) -> &ForwardCount {
        &self.forwards
    }

    /// Makes what all passes with these timesteps have in common, and hands it out: as long as it is held, such a pass finds it
    /// where it is.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub(crate) fn shared(&mut self, timesteps: &[f64]) -> Result<Vec<Tensor>, DitError> {
        let _guard = tch::no_grad_guard();
        let mut held = Vec::new();
        for timestep in timesteps {
            held.extend(self.times.get(&self.embeddings, &self.blocks, &[*timestep])?.tensors());
        }
        Ok(held)
    }

    /// Rotations of a grid's tokens (frames, rows, columns), as a pass over it finds them until they are forgotten.
    ///
    /// # Errors
    /// The device has no memory for them.
    pub(crate) fn rotations(&mut self, start_frame: i64, grid: (i64, i64, i64)) -> Result<Tensor, TchError> {
        let _guard = tch::no_grad_guard();
        self.rope.rotations(start_frame, grid.0, grid.1, grid.2)
    }

    /// Those that were handed out are from here on nobody else's.
    pub(crate) fn forget_rotations(&mut self) {
        self.rope.forget();
    }

    /// An empty KV cache for this rank's heads.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub fn new_cache(&self, spec: KvCacheSpec) -> Result<KvCache, DitError> {
        let heads = self.config.num_heads / i64::from(self.shard.world);
        Ok(KvCache::new(spec, self.config.num_layers, heads, self.config.head_dim(), self.options)?)
    }

    /// Keys and values of a prompt `[1, L, text_dim]` for all layers; one all-reduce.
    ///
    /// # Errors
    /// The prompt is too long or of another width; a rank is gone, out of step or late.
    pub fn text_cache(&self, prompt: &Tensor, tp: &Tp) -> Result<TextCache, DitError> {
        let (size, config) = (prompt.size(), &self.config);
        if size.len() != 3 || size[0] != 1 || size[1] > config.text_len || size[2] != config.text_dim {
            let expected = format!("[1, <={}, {}]", config.text_len, config.text_dim);
            return Err(DitError::Input { what: "conditioning", expected, found: format!("{size:?}") });
        }
        let _guard = tch::no_grad_guard();
        self.text_cache_of_tokens(&self.embeddings.text(prompt)?, tp)
    }

    /// As [`Self::text_cache`], for text tokens `[1, L, dim]` that are embedded already.
    ///
    /// # Errors
    /// A rank is gone, out of step or late.
    pub fn text_cache_of_tokens(&self, tokens: &Tensor, tp: &Tp) -> Result<TextCache, DitError> {
        let projected = self.blocks.iter().map(|block| block.cross_attn.project_text(tokens));
        let projected = projected.collect::<Result<Vec<_>, _>>()?;
        let sums: Vec<&Tensor> = projected.iter().map(|(_, _, sums)| sums).collect();
        let mut sums = Tensor::f_stack(&sums, 0)?;
        tp.sum(&mut sums)?;
        let layers = self.blocks.iter().zip(&projected).zip(sums.f_unbind(0)?);
        let layers = layers
            .map(|((block, (k, v, _)), sums)| Ok((block.cross_attn.text_keys(k, &sums)?, v.shallow_clone())));
        Ok(TextCache { layers: layers.collect::<Result<_, DitError>>()? })
    }

    /// One forward pass: flow prediction `[1, F, C, H, W]` in the model's dtype for latents of that shape, with one
    /// timestep for each frame. Counted when it is through; on an error the cache is not to be used again.
    ///
    /// # Errors
    /// The input does not fit the model or the cache; a rank is gone, out of step or late.
    pub fn forward(
        &mut self,
        latents: &Tensor,
        timesteps: &[f64],
        attend: Attend,
        cache: &mut KvCache,
        text: &TextCache,
        tp: &Tp,
    ) -> Result<Tensor, DitError> {
        let _guard = tch::no_grad_guard();
        let pass = self.begin(latents, timesteps, attend, cache)?;
        let mut x = Residual::new(self.embeddings.patches(latents)?, &self.ops);
        let time = self.times.get(&self.embeddings, &self.blocks, pass.timesteps)?;
        for ((block, time), text) in self.blocks.iter().zip(&time.blocks).zip(&text.layers) {
            block.forward(&mut x, time, text, &pass.attention(), cache, tp)?;
        }
        let flow = self.head.forward(x.tensor()?, &time.e, pass.rows, pass.columns)?;
        cache.commit(&pass.plan);
        self.forwards.add_one()?;
        Ok(flow)
    }

    /// As [`Self::forward`], for what it leaves in the cache alone: the last block stops at its keys and values.
    ///
    /// # Errors
    /// As for [`Self::forward`].
    pub fn fill_cache(
        &mut self,
        latents: &Tensor,
        timesteps: &[f64],
        attend: Attend,
        cache: &mut KvCache,
        text: &TextCache,
        tp: &Tp,
    ) -> Result<(), DitError> {
        let _guard = tch::no_grad_guard();
        let pass = self.begin(latents, timesteps, attend, cache)?;
        let mut x = Residual::new(self.embeddings.patches(latents)?, &self.ops);
        let time = self.times.get(&self.embeddings, &self.blocks, pass.timesteps)?;
        let mut blocks = self.blocks.iter().zip(&time.blocks).zip(&text.layers);
        let last = blocks.next_back();
        for ((block, time), text) in blocks {
            block.forward(&mut x, time, text, &pass.attention(), cache, tp)?;
        }
        if let Some(((block, time), _)) = last {
            block.fill_cache(&mut x, time, &pass.attention(), cache, tp)?;
        }
        cache.commit(&pass.plan);
        Ok(self.forwards.add_one()?)
    }

    fn begin<'a>(
        &mut self,
        latents: &Tensor,
        timesteps: &'a [f64],
        attend: Attend,
        cache: &mut KvCache,
    ) -> Result<Pass<'a>, DitError> {
        let [frames, rows, columns] = self.grid(latents, timesteps)?;
        let per_frame = rows * columns;
        let tokens = frames * per_frame;
        let (start_frame, plan, mask) = match attend {
            Attend::Cached { start_frame, bias, block_frames } => {
                let plan = cache.plan(start_frame * per_frame, tokens)?;
                let keys = plan.keys();
                let mask = mask::attention_bias(bias, tokens, keys, per_frame, block_frames, self.options)?;
                (start_frame, plan, mask)
            }
            Attend::Recompute { block_frames } => {
                cache.reset();
                let mask = mask::block_causal(tokens, block_frames * per_frame, self.options.1)?;
                (0, cache.plan(0, tokens)?, mask.map(Mask::Scores))
            }
        };
        let rotations = self.rope.rotations(start_frame, frames, rows, columns)?;
        // Streaming gives all frames the same timestep: one row then serves them all.
        let shared = timesteps.windows(2).all(|pair| pair[0].to_bits() == pair[1].to_bits());
        let timesteps = if shared { &timesteps[..1] } else { timesteps };
        Ok(Pass { timesteps, rows, columns, rotations, plan, mask })
    }

    /// The non-causal model: flow `[1, C, F, H, W]` of `x` of that shape, one timestep for all frames, full attention.
    /// It is one pass on an empty cache.
    ///
    /// # Errors
    /// As for [`Self::forward`].
    pub fn forward_noncausal(
        &mut self,
        x: &Tensor,
        timestep: f64,
        prompt: &Tensor,
        tp: &Tp,
    ) -> Result<Tensor, DitError> {
        let latents = x.f_transpose(1, 2)?;
        let timesteps = vec![timestep; usize::try_from(latents.size()[1]).unwrap_or(0)];
        let [frames, rows, columns] = self.grid(&latents, &timesteps)?;
        let tokens = frames * rows * columns;
        let spec = KvCacheSpec { capacity: tokens, sink: 0, max_attention: tokens, evicts: false };
        let mut cache = self.new_cache(spec)?;
        let text = self.text_cache(prompt, tp)?;
        let attend = Attend::Cached { start_frame: 0, bias: 1.0, block_frames: frames };
        Ok(self.forward(&latents, &timesteps, attend, &mut cache, &text, tp)?.f_transpose(1, 2)?)
    }

    /// Frames, rows and columns of tokens of latents `[1, F, C, H, W]`, checked.
    fn grid(&self, latents: &Tensor, timesteps: &[f64]) -> Result<[i64; 3], DitError> {
        let (size, config) = (latents.size(), &self.config);
        let [_, ph, pw] = config.patch_size;
        match size[..] {
            [1, frames, channels, height, width]
                if frames > 0
                    && frames == timesteps.len() as i64
                    && channels == config.in_dim
                    && height > 0
                    && width > 0
                    && height % ph == 0
                    && width % pw == 0 =>
            {
                Ok([frames, height / ph, width / pw])
            }
            _ => {
                let frames = timesteps.len();
                let expected =
                    format!("[1, {frames}, {}, multiple of {ph}, multiple of {pw}]", config.in_dim);
                Err(DitError::Input { what: "latents", expected, found: format!("{size:?}") })
            }
        }
    }
}

/// Refuses configs that the original format allows and this model does not implement.
fn check_supported(config: &DitConfig) -> Result<(), WeightsError> {
    let refuse = |what: String| Err(WeightsError::Unsupported { what });
    if config.patch_size[0] != 1 {
        return refuse(format!("patch_size {:?}; allowed: 1 in time", config.patch_size));
    }
    if !config.qk_norm || !config.cross_attn_norm {
        let (qk, cross) = (config.qk_norm, config.cross_attn_norm);
        return refuse(format!("qk_norm {qk}, cross_attn_norm {cross}; allowed: true, true"));
    }
    Ok(())
}
