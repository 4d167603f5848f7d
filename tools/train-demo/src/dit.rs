//! The causal diffusion transformer of [`wan::dit`] for training: a batch of chunks, each with its context, with gradients.
//!
//! What the server does in two passes, first the context at timestep 0 and then the chunk with the context's keys in its
//! cache, is one pass here (teacher forcing): the context attends to itself, the chunk to both.

use tch::{Device, Kind, Tensor};
use wan::config::DitConfig;
use wan::rope::{Rope, rotate};

use crate::parameters::{Init, Layout, Slot, Weights};

/// Frames of a chunk, and of a context.
pub const CHUNK: i64 = 3;
/// Prefix of its parameters among those of the whole conditional model.
pub const PREFIX: &str = "dit:";

type Linear = (Slot, Slot);

fn linear(w: &Weights, (weight, bias): Linear, x: &Tensor) -> Tensor {
    x.linear(&w[weight], Some(&w[bias]))
}

#[derive(Debug)]
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    norm_q: Slot,
    norm_k: Slot,
}

impl Attention {
    fn new(l: &mut Layout, name: &str, dim: i64, gain: f64) -> Self {
        let mut part = |part: &str, gain: f64| l.linear(&format!("{name}.{part}"), &[dim, dim], gain);
        let (q, k, v, o) = (part("q", 1.0), part("k", 1.0), part("v", 1.0), part("o", gain));
        let mut norm = |part: &str| l.add(format!("{name}.{part}.weight"), &[dim], Init::Constant(1.0));
        Self { q, k, v, o, norm_q: norm("norm_q"), norm_k: norm("norm_k") }
    }
}

#[derive(Debug)]
struct Block {
    self_attn: Attention,
    cross_attn: Attention,
    norm3: Linear,
    up: Linear,
    down: Linear,
    modulation: Slot,
}

#[derive(Debug)]
pub struct TrainDit {
    config: DitConfig,
    patch: Linear,
    time: (Linear, Linear),
    time_projection: Linear,
    text: (Linear, Linear),
    blocks: Vec<Block>,
    head: Linear,
    head_modulation: Slot,
    /// `[half]` f64.
    frequencies: Tensor,
}

impl TrainDit {
    pub fn new(config: &DitConfig, l: &mut Layout, device: Device) -> Self {
        let dim = config.dim;
        let named = |name: &str| format!("{PREFIX}{name}");
        let (channels, [pt, ph, pw]) = (config.in_dim, config.patch_size);
        let patch = l.linear(&named("patch_embedding"), &[dim, channels, pt, ph, pw], 1.0);
        let time = (
            l.linear(&named("time_embedding.0"), &[dim, config.freq_dim], 1.0),
            l.linear(&named("time_embedding.2"), &[dim, dim], 1.0),
        );
        let time_projection = l.linear(&named("time_projection.1"), &[6 * dim, dim], 0.3);
        let text = (
            l.linear(&named("text_embedding.0"), &[dim, config.text_dim], 1.0),
            l.linear(&named("text_embedding.2"), &[dim, dim], 1.0),
        );
        let gain = 0.5 / (config.num_layers as f64).sqrt();
        let block = |l: &mut Layout, i: i64| {
            let name = named(&format!("blocks.{i}"));
            Block {
                self_attn: Attention::new(l, &format!("{name}.self_attn"), dim, gain),
                cross_attn: Attention::new(l, &format!("{name}.cross_attn"), dim, gain),
                norm3: (
                    l.add(format!("{name}.norm3.weight"), &[dim], Init::Constant(1.0)),
                    l.add(format!("{name}.norm3.bias"), &[dim], Init::Constant(0.0)),
                ),
                up: l.linear(&format!("{name}.ffn.0"), &[config.ffn_dim, dim], 1.0),
                down: l.linear(&format!("{name}.ffn.2"), &[dim, config.ffn_dim], gain),
                modulation: l.add(format!("{name}.modulation"), &[1, 6, dim], Init::Normal(0.3)),
            }
        };
        let blocks = (0..config.num_layers).map(|i| block(l, i)).collect();
        let head = l.linear(&named("head.head"), &[pt * ph * pw * config.out_dim, dim], 0.3);
        let head_modulation = l.add(named("head.modulation"), &[1, 2, dim], Init::Normal(0.1));
        let half = config.freq_dim / 2;
        let exponents = Tensor::arange(half, (Kind::Double, device)) / half as f64;
        let frequencies = (exponents * -(10_000_f64.ln())).exp();
        Self {
            config: config.clone(),
            patch,
            time,
            time_projection,
            text,
            blocks,
            head,
            head_modulation,
            frequencies,
        }
    }

    /// Text tokens `[B, L, dim]` of embedded prompts `[B, L, text_dim]`.
    pub fn text(&self, w: &Weights, prompts: &Tensor) -> Tensor {
        linear(w, self.text.1, &linear(w, self.text.0, prompts).gelu("tanh"))
    }

    /// Flow of chunks `[B, 3, C, h, w]` at timesteps `[B]` (f64) after contexts `[B, 3, C, h, w]`, given text tokens
    /// `[B, L, dim]`. The dtype is that of the weights.
    pub fn flow(
        &self,
        w: &Weights,
        rope: &mut Rope,
        chunk: &Tensor,
        timesteps: &Tensor,
        context: Option<&Tensor>,
        text: &Tensor,
    ) -> Tensor {
        let size = chunk.size();
        let (batch, rows, columns) = (size[0], size[3] / 2, size[4] / 2);
        let kind = text.kind();
        let chunk = chunk.to_kind(kind);
        let (latents, groups) = match context {
            Some(context) => (Tensor::stack(&[context.to_kind(kind), chunk], 1), 2),
            None => (chunk.unsqueeze(1), 1),
        };
        let mut x = linear_flat(w, self.patch, &self.patches(&latents));
        let (e, e0) = self.times(w, timesteps, groups, kind);
        let rotations =
            rope.rotations(0, groups * CHUNK, rows, columns).unwrap_or_else(|e| panic!("rope: {e}"));
        for block in &self.blocks {
            x = self.block(w, block, &x, &e0, &rotations, text);
        }
        // The head sees the chunk alone.
        let x = x.select(1, groups - 1);
        let modulation = &w[self.head_modulation] + e.unsqueeze(1);
        let (shift, scale) = (modulation.narrow(1, 0, 1), modulation.narrow(1, 1, 1) + 1.0);
        let y = linear(w, self.head, &(shift + self.normed(&x, None) * scale));
        let out = self.config.out_dim;
        let y = y.reshape(&[batch, CHUNK, rows, columns, 2, 2, out][..]).permute([0, 1, 6, 2, 4, 3, 5]);
        y.reshape([batch, CHUNK, out, 2 * rows, 2 * columns])
    }

    /// `[B, G, 3, C, h, w]` -> `[B, G, 3 * S, 4C]`.
    fn patches(&self, latents: &Tensor) -> Tensor {
        let s = latents.size();
        let (rows, columns) = (s[4] / 2, s[5] / 2);
        let x =
            latents.reshape([s[0], s[1], s[2], s[3], rows, 2, columns, 2]).permute([0, 1, 2, 4, 6, 3, 5, 7]);
        x.reshape([s[0], s[1], s[2] * rows * columns, s[3] * 4])
    }

    /// Embedded time of the chunk `[B, dim]`, and projected time of context and chunk `[B, G, 6, dim]`.
    fn times(&self, w: &Weights, timesteps: &Tensor, groups: i64, kind: Kind) -> (Tensor, Tensor) {
        let batch = timesteps.size()[0];
        // The last row is the context's timestep, 0.
        let all = timesteps.to_kind(Kind::Double).constant_pad_nd([0, 1]);
        let angles = all.unsqueeze(1) * self.frequencies.unsqueeze(0);
        let sinusoid = Tensor::cat(&[angles.cos(), angles.sin()], 1).to_kind(kind);
        let e = linear(w, self.time.1, &linear(w, self.time.0, &sinusoid).silu());
        let e0 = linear(w, self.time_projection, &e.silu()).view([batch + 1, 6, -1]);
        let chunk = e0.narrow(0, 0, batch);
        let e0 = if groups == 2 {
            Tensor::stack(&[e0.narrow(0, batch, 1).expand_as(&chunk), chunk], 1)
        } else {
            chunk.unsqueeze(1)
        };
        (e.narrow(0, 0, batch), e0)
    }

    fn normed(&self, x: &Tensor, affine: Option<(&Tensor, &Tensor)>) -> Tensor {
        x.layer_norm([self.config.dim], affine.map(|a| a.0), affine.map(|a| a.1), self.config.eps, true)
    }

    fn block(
        &self,
        w: &Weights,
        block: &Block,
        x: &Tensor,
        e0: &Tensor,
        rotations: &Tensor,
        text: &Tensor,
    ) -> Tensor {
        let rows = w[block.modulation].unsqueeze(0) + e0;
        let row = |i: i64| rows.narrow(2, i, 1);
        let modulated = |x: &Tensor, i: i64| row(i).addcmul(&self.normed(x, None), &(row(i + 1) + 1.0));
        let x = x + self.self_attend(w, &block.self_attn, &modulated(x, 0), rotations) * row(2);
        let crossed = self.normed(&x, Some((&w[block.norm3.0], &w[block.norm3.1])));
        let x = &x + self.cross_attend(w, &block.cross_attn, &crossed, text);
        let fed = linear(w, block.down, &linear(w, block.up, &modulated(&x, 3)).gelu("tanh"));
        &x + fed * row(5)
    }

    fn heads(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        x.reshape([size[0], -1, self.config.num_heads, self.config.head_dim()])
    }

    fn rms(&self, x: &Tensor, weight: &Tensor) -> Tensor {
        x.rms_norm([self.config.dim], Some(weight), self.config.eps)
    }

    /// `x` is `[B, G, N, dim]`.
    fn self_attend(&self, w: &Weights, a: &Attention, x: &Tensor, rotations: &Tensor) -> Tensor {
        let size = x.size();
        let tokens = size[2];
        let turned = |part: Linear, norm: Slot| {
            let y = self.rms(&linear(w, part, x), &w[norm]);
            rotate(&self.heads(&y), rotations).unwrap_or_else(|e| panic!("rope: {e}")).transpose(1, 2)
        };
        let (q, k) = (turned(a.q, a.norm_q), turned(a.k, a.norm_k));
        let v = self.heads(&linear(w, a.v, x)).transpose(1, 2);
        let y = if size[1] == 1 {
            attend(&q, &k, &v)
        } else {
            let part = |x: &Tensor, i: i64| x.narrow(2, i * tokens, tokens);
            let context = attend(&part(&q, 0), &part(&k, 0), &part(&v, 0));
            Tensor::cat(&[context, attend(&part(&q, 1), &k, &v)], 2)
        };
        linear(w, a.o, &y.transpose(1, 2).reshape(size.as_slice()))
    }

    fn cross_attend(&self, w: &Weights, a: &Attention, x: &Tensor, text: &Tensor) -> Tensor {
        let size = x.size();
        let q = self.heads(&self.rms(&linear(w, a.q, x), &w[a.norm_q])).transpose(1, 2);
        let k = self.heads(&self.rms(&linear(w, a.k, text), &w[a.norm_k])).transpose(1, 2);
        let v = self.heads(&linear(w, a.v, text)).transpose(1, 2);
        linear(w, a.o, &attend(&q, &k, &v).transpose(1, 2).reshape(size.as_slice()))
    }
}

fn attend(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    Tensor::scaled_dot_product_attention(q, k, v, None::<&Tensor>, 0.0, false, None, false)
}

/// A linear layer whose weight has more axes than two.
fn linear_flat(w: &Weights, (weight, bias): Linear, x: &Tensor) -> Tensor {
    x.linear(&w[weight].flatten(1, -1), Some(&w[bias]))
}
