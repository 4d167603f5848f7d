//! The text encoder of [`wan::text`] for training, in batches and with gradients.

use tch::{Device, Kind, Tensor};
use wan::config::Umt5Config;
use wan::text::relative_position_bucket;

use crate::parameters::{Init, Layout, Slot, Weights};

#[derive(Debug)]
struct Block {
    norms: [Slot; 2],
    q: Slot,
    k: Slot,
    v: Slot,
    o: Slot,
    table: Slot,
    gate: Slot,
    fc1: Slot,
    fc2: Slot,
}

/// Prefix of its parameters among those of the whole conditional model.
pub const PREFIX: &str = "text:";

#[derive(Debug)]
pub struct TrainText {
    embedding: Slot,
    blocks: Vec<Block>,
    norm: Slot,
    heads: i64,
    eps: f64,
    /// `[L * L]` int64, the bucket of each query and key.
    buckets: Tensor,
    length: i64,
}

/// Part of a table of positions' name.
pub const POSITIONS: &str = "pos_embedding";

/// Where a table of positions starts, `[buckets, heads]`: of four heads one looks back, one ahead, one at what is near and one
/// at everything (biases that grow with the distance are those of ALiBi, arXiv 2108.12409). From tables without a
/// preference an encoder did not learn in 15 000 steps which of two nouns a word beside them belongs to.
fn nearness(buckets: i64, heads: i64) -> Vec<f32> {
    const FALL: [(f32, f32); 4] = [(1.0, 4.0), (4.0, 1.0), (0.5, 0.5), (0.0, 0.0)];
    let half = buckets / 2;
    let of = |bucket: i64, head: i64| {
        let (back, ahead) = FALL[(head % 4) as usize];
        -(bucket % half) as f32 * if bucket < half { back } else { ahead }
    };
    (0..buckets).flat_map(|bucket| (0..heads).map(move |head| of(bucket, head))).collect()
}

impl TrainText {
    pub fn new(config: &Umt5Config, l: &mut Layout, device: Device) -> Self {
        let (dim, attn, ffn) = (config.dim, config.dim_attn, config.dim_ffn);
        let one = || Init::Constant(1.0);
        let block = |l: &mut Layout, i: i64| {
            let mut part = |name: &str, shape: &[i64], init: Init| {
                l.add(format!("{PREFIX}blocks.{i}.{name}.weight"), shape, init)
            };
            let from = |width: i64, gain: f64| Init::Normal(gain / (width as f64).sqrt());
            Block {
                norms: [part("norm1", &[dim], one()), part("norm2", &[dim], one())],
                // Scores are not scaled, so that the start must be.
                q: part("attn.q", &[attn, dim], from(dim, 0.35)),
                k: part("attn.k", &[attn, dim], from(dim, 0.35)),
                v: part("attn.v", &[attn, dim], from(dim, 1.0)),
                o: part("attn.o", &[dim, attn], from(attn, 0.5)),
                table: l.add(
                    format!("{PREFIX}blocks.{i}.{POSITIONS}.embedding.weight"),
                    &[config.num_buckets, config.num_heads],
                    Init::Values(nearness(config.num_buckets, config.num_heads)),
                ),
                gate: l.add(format!("{PREFIX}blocks.{i}.ffn.gate.0.weight"), &[ffn, dim], from(dim, 1.0)),
                fc1: l.add(format!("{PREFIX}blocks.{i}.ffn.fc1.weight"), &[ffn, dim], from(dim, 1.0)),
                fc2: l.add(format!("{PREFIX}blocks.{i}.ffn.fc2.weight"), &[dim, ffn], from(ffn, 0.5)),
            }
        };
        let blocks = (0..config.num_layers).map(|i| block(l, i)).collect();
        let embedding =
            l.add(format!("{PREFIX}token_embedding.weight"), &[config.vocab, dim], Init::Normal(0.5));
        let norm = l.add(format!("{PREFIX}norm.weight"), &[dim], one());
        let length = config.text_len;
        let buckets: Vec<i64> = (0..length)
            .flat_map(|query| (0..length).map(move |key| key - query))
            .map(|position| relative_position_bucket(position, config.num_buckets, config.max_dist))
            .collect();
        let buckets = Tensor::from_slice(&buckets).to_device(device);
        Self { embedding, blocks, norm, heads: config.num_heads, eps: config.eps, buckets, length }
    }

    /// Ids `[B, L]` int64, 0 where there is no token -> `[B, L, dim]`, such rows zero.
    pub fn forward(&self, w: &Weights, ids: &Tensor) -> Tensor {
        let mut x = Tensor::embedding(&w[self.embedding], ids, -1, false, false);
        let kind = x.kind();
        let masked = ids.eq(0);
        let bias = Tensor::zeros(masked.size(), (kind, ids.device())).masked_fill(&masked, -1e9);
        let bias = bias.unsqueeze(1).unsqueeze(1);
        for block in &self.blocks {
            x = &x + self.attend(w, block, &self.normed(w, block.norms[0], &x), &bias);
            let y = self.normed(w, block.norms[1], &x);
            let none = None::<&Tensor>;
            let y = y.linear(&w[block.fc1], none) * y.linear(&w[block.gate], none).gelu("tanh");
            x = &x + y.linear(&w[block.fc2], none);
        }
        self.normed(w, self.norm, &x) * masked.logical_not().to_kind(kind).unsqueeze(-1)
    }

    fn normed(&self, w: &Weights, weight: Slot, x: &Tensor) -> Tensor {
        let width = x.size()[2];
        x.rms_norm([width], Some(&w[weight]), self.eps)
    }

    fn attend(&self, w: &Weights, block: &Block, x: &Tensor, bias: &Tensor) -> Tensor {
        let (size, none) = (x.size(), None::<&Tensor>);
        let split =
            |slot: Slot| x.linear(&w[slot], none).reshape([size[0], size[1], self.heads, -1]).transpose(1, 2);
        let positions = w[block.table].index_select(0, &self.buckets);
        let positions =
            positions.view([self.length, self.length, self.heads]).permute([2, 0, 1]).unsqueeze(0);
        let scores = split(block.q).matmul(&split(block.k).transpose(-2, -1)) + positions + bias;
        let y = scores.softmax(-1, Kind::Float).to_kind(x.kind()).matmul(&split(block.v));
        y.transpose(1, 2).reshape([size[0], size[1], -1]).linear(&w[block.o], none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_four_heads_one_looks_back_one_ahead_one_near_and_one_anywhere() {
        let table = nearness(32, 4);
        let bias = |position: i64, head: usize| {
            table[relative_position_bucket(position, 32, 128) as usize * 4 + head]
        };
        assert!((0..4).all(|head| bias(0, head) == 0.0));
        let two_away = [-2, 2].map(|position| [0, 1, 2, 3].map(|head| bias(position, head)));
        assert_eq!(two_away, [[-2.0, -8.0, -1.0, 0.0], [-8.0, -2.0, -1.0, 0.0]]);
    }
}
