//! The text encoder.

use tch::Kind;

use super::bytes;
use crate::config::Umt5Config;

/// Parameters of the encoder.
pub fn encoder(config: &Umt5Config) -> i64 {
    let (dim, attn, ffn) = (config.dim, config.dim_attn, config.dim_ffn);
    let norms = 2 * dim;
    let block = norms + 4 * dim * attn + config.num_buckets * config.num_heads + 3 * dim * ffn;
    config.vocab * dim + config.num_layers * block + dim
}

/// Elements of its largest tensor: the table of the vocabulary.
pub(super) fn largest(config: &Umt5Config) -> i64 {
    (config.vocab * config.dim).max(config.dim * config.dim_ffn)
}

/// What encoding the longest prompt works in: scores before and after their softmax and what is added to them, and the
/// gated feed-forward.
pub fn encoding(config: &Umt5Config, kind: Kind) -> u64 {
    let length = config.text_len;
    let scores = bytes(4 * config.num_heads * length * length, Kind::Float);
    scores + bytes(length * (4 * config.dim_ffn + 6 * config.dim), kind)
}
