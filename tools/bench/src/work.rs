//! How much a chunk computes.

use wan::config::ModelConfig;

/// Multiplications and additions of one steady chunk, over all ranks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// Of matrix products.
    pub(crate) products: f64,
    /// Of attention to past frames, to the chunk's own and to the text.
    pub(crate) attention: f64,
}

impl Work {
    /// Embeddings, modulations and the keys of a new prompt are left out: they are less than a hundredth.
    pub(crate) fn of_chunk(config: &ModelConfig, (height, width): (u32, u32)) -> Self {
        let (rows, columns) = config.latent_size(height, width);
        let per_frame = config.dit.tokens_per_frame(rows, columns) as f64;
        let tokens = per_frame * config.num_frame_per_block as f64;
        let window = per_frame * config.local_attn_size as f64;
        let (recompute, commit) = (config.family.recomputes(), config.family.has_clean_pass());
        let dit = &config.dit;
        let (dim, ffn, text) = (dit.dim as f64, dit.ffn_dim as f64, dit.text_len as f64);
        let (layers, steps) = (dit.num_layers as f64, config.default_steps.len() as f64);
        // q, k, v, o of self-attention, q and o of cross-attention, up and down of the feed-forward.
        let products = 2.0 * tokens * (6.0 * dim * dim + 2.0 * dim * ffn);
        let attention = |keys: f64| 4.0 * tokens * dim * (keys + text);
        let passes = |yes: bool| f64::from(u8::from(yes));
        // Of the last layer, a pass for the cache alone needs q, k and v.
        let unneeded = products - 2.0 * tokens * 3.0 * dim * dim;
        Self {
            products: (layers * steps * products)
                + (layers * products - unneeded) * (passes(recompute) + passes(commit)),
            attention: layers * steps * attention(window)
                + (layers - 1.0)
                    * (attention(window) * passes(commit) + attention(tokens) * passes(recompute)),
        }
    }
}

#[cfg(test)]
mod tests {
    use wan::config::Family;

    use super::*;

    #[test]
    fn both_passes_multiply_alike_but_a_commit_attends_to_the_whole_window() {
        let recompute = ModelConfig::named("tiny").unwrap();
        let commit = ModelConfig { family: Family::SelfForcing { sink_size: 1 }, ..recompute.clone() };
        let [recompute, commit] = [recompute, commit].map(|config| Work::of_chunk(&config, (128, 128)));
        // Four passes of four layers and one of three: 192 tokens, width 128, feed-forward 512; and q, k and v once more.
        let layer = 2.0 * 192.0 * (6.0 * 128.0 * 128.0 + 2.0 * 128.0 * 512.0);
        let products = 19.0 * layer + 2.0 * 192.0 * 3.0 * 128.0 * 128.0;
        assert_eq!((recompute.products, commit.products), (products, products));
        // Its own 192 tokens and 192 of the past, and 64 of the text.
        assert_eq!(commit.attention - recompute.attention, 3.0 * 4.0 * 192.0 * 128.0 * 192.0);
    }
}
