//! `generator`: steady chunks of one stream.

use std::time::{Duration, Instant};

use collectives::Solo;
use device::DeviceKind;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use wan::config::{Family, ModelConfig};
use wan::dit::{CausalDit, Shard, Tp};
use wan::generator::{ChunkArgs, ChunkOutput, Generator};
use wan::noise::block_noise;
use wan::weights::{Component, Weights};

use crate::{Failure, ceiling, gpu};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long, default_value = "wan-1.3b")]
    model: String,
    #[arg(long, default_value = "auto")]
    device: DeviceKind,
    /// Of the synthetic weights.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    #[arg(long, default_value_t = 480)]
    height: u32,
    #[arg(long, default_value_t = 832)]
    width: u32,
    /// Weight of past frames in self-attention, in (0, 1].
    #[arg(long, default_value_t = 1.0)]
    bias: f64,
    /// Rebuild the KV cache from context frames before each chunk, as Krea does, whatever the model's own family.
    #[arg(long)]
    recompute: bool,
    /// `bf16` or `f32`; default: bf16 on a GPU, f32 on a CPU.
    #[arg(long, value_parser = parse_kind)]
    precision: Option<Kind>,
    #[arg(long, default_value_t = 20)]
    chunks: u32,
    /// Chunks before the measurement: the window fills, kernels are chosen.
    #[arg(long, default_value_t = 5)]
    warm_up: u32,
}

fn parse_kind(text: &str) -> Result<Kind, String> {
    match text {
        "bf16" => Ok(Kind::BFloat16),
        "f32" => Ok(Kind::Float),
        other => Err(format!("precision {other:?}: bf16 or f32 is allowed")),
    }
}

pub(crate) fn measure(options: &Options) -> Result<Value, Failure> {
    let chosen = device::resolve(options.device, None)?;
    let device = chosen.device;
    let kind = options.precision.unwrap_or(if device.is_cuda() { Kind::BFloat16 } else { Kind::Float });
    let mut config = ModelConfig::named(&options.model)?;
    if options.recompute {
        config.family = Family::Krea;
    }
    let source = Weights::Synthetic { seed: options.seed }.open(Component::Dit, device)?;
    let (load_s, dit) =
        gpu::seconds(device, || Ok(CausalDit::load(&config.dit, &*source, Shard::WHOLE, device, kind)?))?;
    let mut stream = Stream::new(Generator::new(&config, dit, 1), options);
    for _ in 0..options.warm_up.max(3) {
        stream.chunk(device)?;
    }
    let mut times = Vec::new();
    let mut host = Duration::ZERO;
    let mut calls = 0;
    for _ in 0..options.chunks.max(1) {
        let (time, output) = gpu::seconds(device, || stream.chunk(device))?;
        times.push(time * 1e3);
        host += output.timings.iter().map(|(_, took)| *took).sum::<Duration>();
        calls = output.generator_calls;
    }
    let used = gpu::used_memory(device)?;
    let ceiling = ceiling::gemm(device, kind)?;
    times.sort_by(f64::total_cmp);
    let (median, p95) = (at(&times, 0.5), at(&times, 0.95));
    let flops = flops(&config, options);
    let rate = flops / median / 1e9;
    Ok(json!({
        "bench": "generator", "model": config.name, "weights": format!("synthetic:{}", options.seed),
        "gpu": gpu::name(device)?, "device": format!("{device:?}"), "precision": format!("{kind:?}"),
        "height": options.height, "width": options.width, "latent_frames": config.num_frame_per_block,
        "window_latent_frames": config.local_attn_size, "steps": config.default_steps,
        "recompute_pass": config.family.recomputes(), "commit_pass": config.family.has_clean_pass(),
        "forwards": calls, "bias": options.bias, "attention_backend": "torch-eager", "world_size": 1,
        "chunks": times.len(), "warm_up_chunks_excluded": options.warm_up.max(3),
        "load_s": load_s, "chunk_ms": {"median": median, "p95": p95},
        "host_ms": host.as_secs_f64() * 1e3 / times.len() as f64,
        "model_tflop": flops / 1e12, "tflop_per_s": rate, "gemm_tflop_per_s": ceiling,
        "share_of_gemm": rate / ceiling, "device_memory_mib": used,
    }))
}

fn at(sorted: &[f64], quantile: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * quantile).round() as usize]
}

/// Multiplications and additions of the matrix products and attentions of one steady chunk.
fn flops(config: &ModelConfig, options: &Options) -> f64 {
    let (rows, columns) = config.latent_size(options.height, options.width);
    let per_frame = config.dit.tokens_per_frame(rows, columns) as f64;
    let tokens = per_frame * config.num_frame_per_block as f64;
    let dit = &config.dit;
    let (dim, ffn, text) = (dit.dim as f64, dit.ffn_dim as f64, dit.text_len as f64);
    let forward = |keys: f64| {
        // q, k, v, o of self-attention, q and o of cross-attention, up and down of the feed-forward.
        let products = 2.0 * tokens * (6.0 * dim * dim + 2.0 * dim * ffn);
        let attention = 4.0 * tokens * dim * (keys + text);
        dit.num_layers as f64 * (products + attention)
    };
    let window = per_frame * config.local_attn_size as f64;
    let steps = config.default_steps.len() as f64;
    let extra = if config.family.recomputes() { forward(tokens) } else { 0.0 };
    let commit = if config.family.has_clean_pass() { forward(window) } else { 0.0 };
    steps * forward(window) + extra + commit
}

/// One stream, chunk after chunk.
struct Stream<'a> {
    generator: Generator,
    options: &'a Options,
    next: i64,
    kept: Option<Tensor>,
}

impl<'a> Stream<'a> {
    fn new(generator: Generator, options: &'a Options) -> Self {
        Self { generator, options, next: 0, kept: None }
    }

    fn chunk(&mut self, device: Device) -> Result<ChunkOutput, Failure> {
        let (options, config) = (self.options, self.generator.config().clone());
        let (h, w) = config.latent_size(options.height, options.width);
        let frames = config.num_frame_per_block;
        let noise = block_noise(options.seed, self.next, frames, config.dit.in_dim, h, w)?;
        let first = self.next == 0;
        let prompt = first
            .then(|| Tensor::f_randn([1, config.dit.text_len, config.dit.text_dim], (Kind::Float, device)))
            .transpose()?;
        let solo = Solo::new();
        let tp = Tp { collective: &solo, deadline: Instant::now() + Duration::from_secs(600) };
        let args = ChunkArgs {
            current_start_frame: self.next,
            latents_in: &noise,
            conditioning: prompt.as_ref(),
            context_frames: self.kept.as_ref().filter(|_| config.family.recomputes()),
            denoising_steps: &config.default_steps,
            base_seed: options.seed,
            kv_cache_attention_bias: options.bias,
            init_cache: first,
            reset_kv_cache: false,
            reset_crossattn_cache: false,
        };
        let output = self.generator.generate(0, &args, &tp)?;
        self.next = output.current_start_frame;
        self.kept = Some(output.latents.shallow_clone());
        Ok(output)
    }
}
