//! A rank of the transformer.

use tch::Kind;

use super::bytes;
use crate::config::{DitConfig, ModelConfig};
use crate::dit::KEPT_TIMES;
use crate::rope::KEPT_ROTATIONS;

/// Parameters that a rank of a group of `world` reads: with `d` = `dim` and `f` = `ffn_dim`, in each layer
/// `8 d^2 / w + 2 d f / w` and the smaller ones, and whole what surrounds the layers.
pub fn shard(config: &DitConfig, world: i64) -> i64 {
    let (d, f) = (config.dim, config.ffn_dim);
    let linear = |outputs: i64, inputs: i64| outputs * inputs + outputs;
    let columns = |outputs: i64, inputs: i64| linear(outputs / world, inputs);
    let rows = |outputs: i64, inputs: i64| linear(outputs, inputs / world);
    // q, k and v, the norms of q and k, and o.
    let attention = 3 * columns(d, d) + 2 * (d / world) + rows(d, d);
    let norm3 = 2 * d;
    let modulation = 6 * d;
    let block = 2 * attention + columns(f, d) + rows(d, f) + norm3 + modulation;
    let patch: i64 = config.patch_size.iter().product();
    let time = linear(d, config.freq_dim) + linear(d, d) + linear(6 * d, d);
    let text = linear(d, config.text_dim) + linear(d, d);
    let head = linear(patch * config.out_dim, d) + 2 * d;
    config.num_layers * block + linear(d, patch * config.in_dim) + time + text + head
}

/// Elements of the largest tensor, or stack of tensors, that is made while a rank loads.
pub(super) fn largest(config: &DitConfig, world: i64) -> i64 {
    let (d, f) = (config.dim, config.ffn_dim);
    (6 * d * d).max(3 * d * d / world).max(f * d / world).max(d * config.text_dim)
}

/// Bytes of one session's KV cache at a size (height, width) in pixels: keys and values of every layer for the window's
/// tokens, of this rank's heads.
pub fn kv_cache(model: &ModelConfig, world: i64, size: (u32, u32), kind: Kind) -> u64 {
    let tokens = model.local_attn_size * tokens_per_frame(model, size);
    bytes(model.dit.num_layers * 2 * tokens * (model.dit.dim / world), kind)
}

/// Bytes of one prompt's keys and values in every layer, of this rank's heads.
pub fn text_cache(config: &DitConfig, world: i64, kind: Kind) -> u64 {
    bytes(config.num_layers * 2 * config.text_len * (config.dim / world), kind)
}

fn tokens_per_frame(model: &ModelConfig, (height, width): (u32, u32)) -> i64 {
    let (rows, columns) = model.latent_size(height, width);
    model.dit.tokens_per_frame(rows, columns)
}

/// What a chunk's forward passes work in: the activations of one layer, which are largest around the rotation of
/// queries and keys (in float32) or in the feed-forward; one mask; and what is kept of rotations and timesteps.
pub fn chunk(model: &ModelConfig, world: i64, size: (u32, u32), kind: Kind) -> u64 {
    let (dit, per_frame) = (&model.dit, tokens_per_frame(model, size));
    let tokens = model.num_frame_per_block.max(model.kv_cache_num_frames) * per_frame;
    let (d, own, up) = (dit.dim, dit.dim / world, dit.ffn_dim / world);
    // The tokens and their norm; q, k and v, then q and k normalised; both in float32 before and after they turn.
    let attention = bytes(tokens * (2 * d + 7 * own), kind) + bytes(tokens * 6 * own, Kind::Float);
    let feed_forward = bytes(tokens * (3 * d + 2 * up), kind);
    let mask = bytes(tokens * model.local_attn_size * per_frame, kind);
    let rotations = bytes(KEPT_ROTATIONS as i64 * tokens * dit.head_dim(), Kind::Float);
    // Six rows of each layer, two of which are scales that are kept with 1 added.
    let times = bytes(KEPT_TIMES as i64 * (dit.num_layers * 8 + 1) * d, kind);
    attention.max(feed_forward) + mask + rotations + times
}

#[cfg(test)]
mod tests {
    use tch::{Device, Tensor};

    use super::*;
    use crate::dit::{CausalDit, Shard, Tp};
    use crate::generator::{ChunkArgs, Generator};
    use crate::weights::SyntheticSource;

    /// The caches of a stream that has filled its window.
    #[test]
    fn caches_take_what_was_said() {
        let model = ModelConfig::named("tiny").unwrap();
        let size = (96, 160);
        let (rows, columns) = model.latent_size(size.0, size.1);
        let options = (Kind::Float, Device::Cpu);
        let source = SyntheticSource::new(1);
        let dit = CausalDit::load(&model.dit, &source, Shard::WHOLE, options.1, options.0).unwrap();
        let mut generator = Generator::new(&model, dit, 1);
        let solo = collectives::Solo::new();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let tp = Tp { collective: &solo, deadline };
        let latents = Tensor::zeros([1, 3, 16, rows, columns], options);
        let prompt = Tensor::ones([1, model.dit.text_len, model.dit.text_dim], options);
        let args = ChunkArgs {
            current_start_frame: 0,
            latents_in: &latents,
            conditioning: Some(&prompt),
            context_frames: None,
            denoising_steps: &[1000],
            base_seed: 1,
            kv_cache_attention_bias: 1.0,
            init_cache: true,
            reset_kv_cache: false,
            reset_crossattn_cache: false,
        };
        generator.generate(0, &args, &tp).unwrap();
        let kv = generator.kv_cache(0).unwrap().bytes();
        assert_eq!(kv, kv_cache(&model, 1, size, Kind::Float));
        let text = generator.dit().text_cache(&prompt, &tp).unwrap();
        let held = |(k, v): &(Tensor, Tensor)| k.numel() + v.numel();
        let text: usize = text.layers().iter().map(held).sum();
        assert_eq!(4 * text as u64, text_cache(&model.dit, 1, Kind::Float));
    }
}
