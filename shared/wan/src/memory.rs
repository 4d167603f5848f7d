//! How many bytes of its device a service will need, from the configuration of the model alone.
//!
//! Weights, KV caches, text keys and the caches of a decoder's stream are exact: tests compare them with what is loaded
//! and allocated. What a pass works in beyond its result is an estimate, a measured factor times the largest activation;
//! a test holds the measured peak of a CPU against it. On a GPU the caching allocator and the libraries' work spaces come
//! on top, for which [`GPU_PROCESS`] has room.
//!
//! Everything is counted at the largest size that the model is served at, because any session may ask for it.

use std::fmt;

use tch::{Device, Kind};

use crate::config::ModelConfig;

mod dit;
mod text;
mod vae;

pub use dit::{chunk, kv_cache, shard, text_cache};
pub use text::{encoder, encoding};
pub use vae::{autoencoder, decoder_stream, decoding};

/// What a process of libtorch has resident before it holds anything: its libraries, their pools and the runtime.
pub const CPU_PROCESS: u64 = 256 << 20;
/// What a process takes of a GPU beside its tensors: the context, the kernels that it loads and the libraries' work spaces.
pub const GPU_PROCESS: u64 = 1 << 30;
/// What seeded weights are made in on a GPU, a batch at a time; see [`crate::weights::SyntheticSource`].
const MAKING: u64 = 300 << 20;

/// The bytes of a device that something needs, part by part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need(Vec<(&'static str, u64)>);

impl Need {
    /// The same, and one part more; a part of no bytes is none.
    #[must_use]
    pub fn and(mut self, part: &'static str, bytes: u64) -> Self {
        if bytes > 0 {
            self.0.push((part, bytes));
        }
        self
    }

    /// That of so many of the same.
    #[must_use]
    pub fn times(mut self, count: u32) -> Self {
        self.0.iter_mut().for_each(|(_, bytes)| *bytes *= u64::from(count));
        self
    }

    /// Names and bytes.
    pub fn parts(&self) -> &[(&'static str, u64)] {
        &self.0
    }

    /// Bytes of all parts.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// `3.51 GiB: weights 2.70, kv caches 0.81`
impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Gib(self.total()))?;
        for (i, (part, bytes)) in self.0.iter().enumerate() {
            let before = if i == 0 { ": " } else { ", " };
            write!(f, "{before}{part} {:.2}", gib(*bytes))?;
        }
        Ok(())
    }
}

/// Bytes for people: `3.51 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gib(pub u64);

impl fmt::Display for Gib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} GiB", gib(self.0))
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// What one rank of a mesh holds.
#[derive(Clone, Copy, Debug)]
pub struct Rank<'a> {
    pub model: &'a ModelConfig,
    /// One that divides the model's heads.
    pub world: u32,
    /// KV slots for sessions. One more is kept for warm-up and canary, at the model's first size.
    pub sessions: u32,
    /// Embedded prompts that are kept.
    pub conditionings: u32,
    /// What the generator computes in, and where.
    pub options: (Kind, Device),
    /// Whether calls are captured as CUDA graphs, which have memory of their own to work in.
    pub graphs: bool,
}

impl Rank<'_> {
    /// Weights, caches of all slots, prompts, and the larger of what loading and one pass work in.
    pub fn need(&self) -> Need {
        let (model, world, kind) = (self.model, i64::from(self.world), self.options.0);
        let sessions = u64::from(self.sessions);
        let first = model.sizes.first().copied().unwrap_or_default();
        let kv = |size| kv_cache(model, world, size, kind);
        let largest_kv = model.sizes.iter().map(|size| kv(*size)).max().unwrap_or_default();
        let text = text_cache(&model.dit, world, kind);
        // Prompts stay as they came, in float32: one in each slot, and those that are kept.
        let prompt = bytes(model.dit.text_len * model.dit.text_dim, Kind::Float);
        let working =
            model.sizes.iter().map(|size| chunk(model, world, *size, kind)).max().unwrap_or_default();
        let loading = bytes(dit::largest(&model.dit, world), Kind::Float) + making(self.options.1);
        Need::default()
            .and("weights", bytes(shard(&model.dit, world), kind))
            .and("kv caches", sessions * largest_kv + kv(first))
            .and("text keys", (sessions + 1) * text)
            .and("prompts", (sessions + 1 + u64::from(self.conditionings)) * prompt)
            .and("working", working.max(text).max(loading))
            .and("graphs", if self.graphs && self.options.1.is_cuda() { working } else { 0 })
            .and("process", process(self.options.1))
    }
}

/// What stage 0 holds.
#[derive(Clone, Copy, Debug)]
pub struct Stage0<'a> {
    pub model: &'a ModelConfig,
    pub sessions: u32,
    /// What its models compute in, and where.
    pub options: (Kind, Device),
}

impl Stage0<'_> {
    /// Weights of text encoder and VAE, a decoder's stream for each session, and the largest of what loading, encoding a
    /// prompt and decoding work in: they take turns.
    pub fn need(&self) -> Need {
        let (model, (kind, device)) = (self.model, self.options);
        let (streams, passes): (Vec<u64>, Vec<u64>) = model
            .sizes
            .iter()
            .map(|size| (decoder_stream(&model.vae, *size, kind), decoding(&model.vae, *size, kind)))
            .unzip();
        let largest = |bytes: Vec<u64>| bytes.into_iter().max().unwrap_or_default();
        let loading = bytes(text::largest(&model.text), Kind::Float) + making(device);
        let working = largest(passes).max(encoding(&model.text, kind)).max(loading);
        let vae = autoencoder(&model.vae);
        Need::default()
            .and("text encoder", bytes(encoder(&model.text), kind))
            .and("vae", bytes(vae.read + vae.copies, kind))
            .and("vae streams", u64::from(self.sessions) * largest(streams))
            .and("working", working)
            .and("process", process(device))
    }
}

/// Bytes of so many elements.
fn bytes(elements: i64, kind: Kind) -> u64 {
    elements.unsigned_abs() * kind.elt_size_in_bytes() as u64
}

fn process(device: Device) -> u64 {
    if device.is_cuda() { GPU_PROCESS } else { CPU_PROCESS }
}

fn making(device: Device) -> u64 {
    if device.is_cuda() { MAKING } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_need_says_its_sum_and_its_parts() {
        let need = Need::default().and("weights", 3 << 29).and("nothing", 0).and("kv caches", 1 << 28);
        assert_eq!(need.total(), (3 << 29) + (1 << 28));
        assert_eq!(need.to_string(), "1.75 GiB: weights 1.50, kv caches 0.25");
    }

    /// Written out once by hand, so that a formula that is wrong in the same way twice is seen.
    #[test]
    fn the_14b_model_needs_what_its_card_says() {
        let model = ModelConfig::named("wan-14b").unwrap();
        // 14.3 billion parameters.
        assert_eq!(shard(&model.dit, 1), 14_288_491_584);
        // 40 layers, keys and values, 6 frames of 30x52 tokens, 5120 channels, bf16.
        assert_eq!(kv_cache(&model, 1, (480, 832), Kind::BFloat16), 40 * 2 * 6 * 1560 * 5120 * 2);
        assert_eq!(kv_cache(&model, 8, (480, 832), Kind::BFloat16), 40 * 2 * 6 * 1560 * 640 * 2);
        let need = |world, sessions| {
            let options = (Kind::BFloat16, Device::Cuda(0));
            Rank { model: &model, world, sessions, conditionings: 16, options, graphs: true }.need().total()
        };
        assert!(need(1, 2) > 40 << 30 && need(1, 2) < 60 << 30, "{}", Gib(need(1, 2)));
        assert!(need(8, 2) < need(4, 2) && need(1, 3) > need(1, 2));
    }
}
