//! Where a chunk's time on the device goes: each kind of work by itself at the chunk's sizes, times how often it is done.

use anyhow::Result;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use wan::config::ModelConfig;
use wan::dit::Ops;
use wan::dit::fused::{AddNorm, Fused, NormRotate};
use wan::rope::Rope;

use crate::ceiling;

/// One rank's share of one layer of one pass.
struct Layer<'a> {
    config: &'a ModelConfig,
    options: (Kind, Device),
    ops: &'a Ops,
    world: i64,
    /// Frames, rows and columns of the chunk's tokens.
    grid: [i64; 3],
}

/// Milliseconds of a chunk on one rank, collectives left out; null on a CPU. Elementwise work is null where it is many
/// tensor operations.
///
/// # Errors
/// The device has no memory for it.
pub(crate) fn measure(
    config: &ModelConfig,
    latents: [i64; 5],
    options: (Kind, Device),
    world: u32,
    ops: &Ops,
) -> Result<Value> {
    if !options.1.is_cuda() {
        return Ok(Value::Null);
    }
    let [_, ph, pw] = config.dit.patch_size;
    let grid = [latents[1], latents[3] / ph, latents[4] / pw];
    let layer = Layer { config, options, ops, world: i64::from(world), grid };
    let family = config.family;
    let (layers, tokens) = (config.dit.num_layers as f64, layer.tokens());
    // A pass for the cache alone ends in its last layer, of which the little that it does is left out.
    let (steps, filled) = (layers * config.default_steps.len() as f64, layers - 1.0);
    let (own, windows) = if family.recomputes() { (filled, steps) } else { (0.0, steps + filled) };
    let window = tokens / grid[0] * config.local_attn_size;
    let attention = windows * layer.attention(window)?
        + own * layer.attention(tokens)?
        + (windows + own) * layer.attention(config.dit.text_len)?;
    let products = (windows + own) * layer.products()?;
    let elementwise = match ops.fused() {
        Some(fused) => Some((windows + own) * layer.elementwise(fused)?),
        None => None,
    };
    Ok(json!({"attention": attention, "products": products, "elementwise": elementwise}))
}

impl Layer<'_> {
    fn tokens(&self) -> i64 {
        self.grid.iter().product()
    }

    fn heads(&self) -> i64 {
        self.config.dit.num_heads / self.world
    }

    fn random(&self, shape: &[i64]) -> Result<Tensor> {
        Ok(Tensor::f_randn(shape, (Kind::Float, self.options.1))?.f_to_kind(self.options.0)?)
    }

    fn ms(&self, work: impl Fn() -> Result<Tensor>) -> Result<f64> {
        ceiling::median_ms(self.options.1, work)
    }

    fn attention(&self, keys: i64) -> Result<f64> {
        let of = |tokens| self.random(&[1, tokens, self.heads(), self.config.dit.head_dim()]);
        let (q, k, v) = (of(self.tokens())?, of(keys)?, of(keys)?);
        self.ms(|| Ok(self.ops.attend(&q, &k, &v, None)?))
    }

    /// q, k and v in one; q of cross-attention and both outputs; up and down of the feed-forward.
    fn products(&self) -> Result<f64> {
        let (dim, ffn) = (self.config.dit.dim, self.config.dit.ffn_dim / self.world);
        let own = dim / self.world;
        let product = |inputs, outputs| {
            let (x, weight) = (self.random(&[1, self.tokens(), inputs])?, self.random(&[outputs, inputs])?);
            let bias = self.random(&[outputs])?;
            self.ms(|| Ok(x.f_linear(&weight, Some(&bias))?))
        };
        let (q, o) = (product(dim, own)?, product(own, dim)?);
        Ok(product(dim, 3 * own)? + q + 2.0 * o + product(dim, ffn)? + product(ffn, dim)?)
    }

    /// Norms of queries and keys, rotation and copies; and three additions with the norm after each.
    fn elementwise(&self, fused: &Fused) -> Result<f64> {
        let (dim, eps, tokens) = (self.config.dit.dim, self.config.dit.eps, self.tokens());
        let (heads, width) = (self.heads(), self.config.dit.head_dim());
        let [frames, rows, columns] = self.grid;
        let turns = Rope::new(width, self.options.1).rotations(0, frames, rows, columns)?;
        let (input, weight) =
            (self.random(&[1, tokens, 3 * heads * width])?, self.random(&[2, heads * width])?);
        let placed = self.random(&[3, tokens, heads, width])?;
        let [q, k, v] = [placed.f_narrow(0, 0, 1)?, placed.f_narrow(0, 1, 1)?, placed.f_narrow(0, 2, 1)?];
        let place = |weight, rotations, outputs: &[&Tensor]| {
            let sums = None;
            fused.norm_rotate(NormRotate { input: &input, weight, sums, dim, eps, rotations, outputs })
        };
        let one = weight.f_narrow(0, 0, 1)?;
        let normed = self.ms(|| {
            place(&weight, Some(&turns), &[&q, &k, &v])?;
            place(&one, None, &[&q])?;
            Ok(q.shallow_clone())
        })?;
        let (x, y) = (self.random(&[1, tokens, dim])?, self.random(&[1, tokens, dim])?);
        let (row, out) = (self.random(&[1, 1, dim])?, x.f_empty_like()?);
        let added = self.ms(|| {
            let added = Some((&y, Some(&row)));
            fused.add_norm(AddNorm { x: &x, added, scale: &row, shift: &row, eps, normed: &out })?;
            Ok(out.shallow_clone())
        })?;
        Ok(normed + 3.0 * added)
    }
}
