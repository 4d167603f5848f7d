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
        Self {
            products: layers * products * (steps + passes(recompute) + passes(commit)),
            attention: layers
                * (attention(window) * (steps + passes(commit)) + attention(tokens) * passes(recompute)),
        }
    }
}
