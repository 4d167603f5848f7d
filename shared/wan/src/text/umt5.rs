//! The UMT5 encoder, as Wan uses it: pre-norm blocks without biases, gated GELU(tanh) feed-forward, attention without
//! scaling and with a relative-position table in every block.

use crate::config::Umt5Config;
use crate::weights::{TensorSource, WeightsError};
use tch::{Device, Kind, Tensor};

/// Weights of the encoder on one device, in one dtype.
#[derive(Debug)]
pub struct Umt5 {
    token_embedding: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    device: Device,
}

impl Umt5 {
    /// Reads the weights under their original Wan names.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(
        config: &Umt5Config,
        source: &dyn TensorSource,
        device: Device,
        kind: Kind,
    ) -> Result<Self, WeightsError> {
        if config.shared_pos {
            return Err(WeightsError::Unsupported { what: "umt5 shared_pos true; allowed: false".into() });
        }
        let get = |name: &str, shape: &[i64]| -> Result<Tensor, WeightsError> {
            Ok(source.get(name, shape)?.to_device(device).to_kind(kind))
        };
        let blocks =
            (0..config.num_layers).map(|i| Block::load(config, &get, i)).collect::<Result<_, _>>()?;
        Ok(Self {
            token_embedding: get("token_embedding.weight", &[config.vocab, config.dim])?,
            blocks,
            norm: Norm { weight: get("norm.weight", &[config.dim])?, eps: config.eps },
            device,
        })
    }

    /// Ids and mask (1 = counts) `[B, L]`, int64 -> `[B, L, dim]`. Masked positions are computed too, without meaning.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> Tensor {
        tch::no_grad(|| {
            let mask = self.key_bias(mask);
            let x = self.blocks.iter().fold(self.embed(ids), |x, block| block.forward(&x, &mask));
            self.norm.forward(&x)
        })
    }

    /// What each block gives on the way of [`forward`](Self::forward), `[B, L, dim]` each.
    pub fn hidden_states(&self, ids: &Tensor, mask: &Tensor) -> Vec<Tensor> {
        tch::no_grad(|| {
            let mask = self.key_bias(mask);
            let mut x = self.embed(ids);
            let mut states = Vec::with_capacity(self.blocks.len());
            for block in &self.blocks {
                x = block.forward(&x, &mask);
                states.push(x.shallow_clone());
            }
            states
        })
    }

    /// What block `block` adds to the attention scores of `length` positions: `[1, heads, length, length]`, query before
    /// key. `None` past the last block.
    pub fn position_bias(&self, block: usize, length: i64) -> Option<Tensor> {
        self.blocks.get(block).map(|block| tch::no_grad(|| block.attention.position_bias(length)))
    }

    fn embed(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.token_embedding, &ids.to_device(self.device), -1, false, false)
    }

    /// `[B, 1, 1, L]`, float32: 0 for keys that count, the lowest number for others.
    fn key_bias(&self, mask: &Tensor) -> Tensor {
        let masked = mask.to_device(self.device).eq(0).unsqueeze(1).unsqueeze(1);
        Tensor::zeros(masked.size(), (Kind::Float, self.device)).masked_fill(&masked, f64::from(f32::MIN))
    }
}

/// Bucket of the relative position key minus query: half of the buckets for keys after the query; in each half one for
/// every small distance, then logarithmically wider ones up to `max_distance`.
pub fn relative_position_bucket(position: i64, buckets: i64, max_distance: i64) -> i64 {
    let half = buckets / 2;
    let exact = half / 2;
    let distance = position.abs();
    let within = if distance < exact {
        distance
    } else {
        // float32, as the reference: at powers of two the rounding decides.
        let ratio = (distance as f32 / exact as f32).ln() / (max_distance as f64 / exact as f64).ln() as f32;
        (half - 1).min(exact + (ratio * (half - exact) as f32) as i64)
    };
    within + if position > 0 { half } else { 0 }
}

/// `x * rsqrt(mean(x^2) + eps)` in float32, then cast back, then the weight.
#[derive(Debug)]
struct Norm {
    weight: Tensor,
    eps: f64,
}

impl Norm {
    fn forward(&self, x: &Tensor) -> Tensor {
        let wide = x.to_kind(Kind::Float);
        let mean = wide.square().mean_dim([-1].as_slice(), true, None::<Kind>);
        (wide * (mean + self.eps).rsqrt()).to_kind(x.kind()) * &self.weight
    }
}

type Get<'a> = dyn Fn(&str, &[i64]) -> Result<Tensor, WeightsError> + 'a;

#[derive(Debug)]
struct Attention {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    /// `[buckets, heads]`.
    table: Tensor,
    max_distance: i64,
}

impl Attention {
    fn forward(&self, x: &Tensor, key_bias: &Tensor) -> Tensor {
        let size = x.size();
        let heads = self.table.size()[1];
        let split = |weight: &Tensor| {
            x.linear(weight, None::<&Tensor>).reshape([size[0], size[1], heads, -1]).transpose(1, 2)
        };
        let (q, k, v) = (split(&self.q), split(&self.k), split(&self.v));
        let scores =
            q.matmul(&k.transpose(-2, -1)).to_kind(Kind::Float) + self.position_bias(size[1]) + key_bias;
        let y = scores.softmax(-1, Kind::Float).to_kind(x.kind()).matmul(&v);
        y.transpose(1, 2).reshape([size[0], size[1], -1]).linear(&self.o, None::<&Tensor>)
    }

    /// `[1, heads, length, length]`.
    fn position_bias(&self, length: i64) -> Tensor {
        let buckets = self.table.size()[0];
        let index: Vec<i64> = (0..length)
            .flat_map(|query| (0..length).map(move |key| key - query))
            .map(|position| relative_position_bucket(position, buckets, self.max_distance))
            .collect();
        let index = Tensor::from_slice(&index).to_device(self.table.device());
        self.table.index_select(0, &index).reshape([length, length, -1]).permute([2, 0, 1]).unsqueeze(0)
    }
}

#[derive(Debug)]
struct Block {
    norm1: Norm,
    attention: Attention,
    norm2: Norm,
    gate: Tensor,
    fc1: Tensor,
    fc2: Tensor,
}

impl Block {
    fn load(config: &Umt5Config, get: &Get, index: i64) -> Result<Self, WeightsError> {
        let (dim, attn, ffn) = (config.dim, config.dim_attn, config.dim_ffn);
        let part = |name: &str, shape: &[i64]| get(&format!("blocks.{index}.{name}.weight"), shape);
        let norm = |name: &str| Ok::<_, WeightsError>(Norm { weight: part(name, &[dim])?, eps: config.eps });
        Ok(Self {
            norm1: norm("norm1")?,
            attention: Attention {
                q: part("attn.q", &[attn, dim])?,
                k: part("attn.k", &[attn, dim])?,
                v: part("attn.v", &[attn, dim])?,
                o: part("attn.o", &[dim, attn])?,
                table: part("pos_embedding.embedding", &[config.num_buckets, config.num_heads])?,
                max_distance: config.max_dist,
            },
            norm2: norm("norm2")?,
            gate: part("ffn.gate.0", &[ffn, dim])?,
            fc1: part("ffn.fc1", &[ffn, dim])?,
            fc2: part("ffn.fc2", &[dim, ffn])?,
        })
    }

    fn forward(&self, x: &Tensor, key_bias: &Tensor) -> Tensor {
        let x = x + self.attention.forward(&self.norm1.forward(x), key_bias);
        let y = self.norm2.forward(&x);
        let none = None::<&Tensor>;
        let y = y.linear(&self.fc1, none) * y.linear(&self.gate, none).gelu("tanh");
        &x + y.linear(&self.fc2, none)
    }
}
