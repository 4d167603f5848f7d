//! `generator`: steady chunks of one stream.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use tch::Tensor;
use wan::config::{Family, ModelConfig};
use wan::dit::{CausalDit, Shard, Tp};
use wan::generator::{ChunkArgs, ChunkOutput, Generator, Graphs};
use wan::noise::block_noise;
use wan::weights::Component;
use xtask::outcome::Refused;

use crate::ceiling::Ceiling;
use crate::options::{self, ModelOptions, PrecisionOption, SizeOptions, Subject, WeightsOption};
use crate::ranks::{self, GroupOptions, Member};
use crate::statistics::Summary;
use crate::work::Work;
use crate::{line, machine, parts, power};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    size: SizeOptions,
    #[command(flatten)]
    weights: WeightsOption,
    #[command(flatten)]
    precision: PrecisionOption,
    /// Ranks, a process each.
    #[arg(long, default_value_t = 1)]
    world_size: u32,
    #[command(flatten)]
    group: GroupOptions,
    /// What a chunk has beside its denoising steps; default: the model's own.
    #[arg(long)]
    pass: Option<Pass>,
    /// Weight of past frames in self-attention, in (0, 1].
    #[arg(long, default_value = "1.0", value_parser = options::parse_bias)]
    bias: f64,
    /// Launches every operation by itself on a GPU, instead of CUDA graphs.
    #[arg(long)]
    no_graphs: bool,
    /// Seed of the noise.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Chunks measured.
    #[arg(long, default_value = "20", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: u32,
    /// Chunks before the measurement, not counted; the window is full after two.
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u32).range(2..))]
    warm_up: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Pass {
    /// The KV cache is rebuilt from context frames before the steps, as Krea does.
    Recompute,
    /// The keys of the clean result are stored after the steps, as Self-Forcing does.
    Commit,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut subject = options.model.at(options.size)?;
    options::check_world_size(&subject.config, options.world_size)?;
    let family = &mut subject.config.family;
    *family = match (options.pass, *family) {
        (Some(Pass::Recompute), _) => Family::Krea,
        (Some(Pass::Commit), Family::Krea) => Family::SelfForcing { sink_size: 1 },
        (_, own) => own,
    };
    if options.bias < 1.0 && !family.recomputes() {
        let text = format!("--bias {}: 1 alone is allowed with a commit pass", options.bias);
        return Err(Refused(text).into());
    }
    ranks::run(options.world_size, options.model.device, options.group, |member| {
        let line = measure(options, &subject, member)?;
        if member.is_first() {
            println!("{line}");
        }
        Ok(())
    })
}

fn measure(options: &Options, subject: &Subject, member: &Member) -> Result<Value> {
    let (device, config) = (member.device, &subject.config);
    let (kind, world) = (options.precision.on(device), options.world_size);
    let source = options.weights.open(Component::Dit, device)?;
    let shard = Shard { rank: member.collective.rank(), world };
    let (load, dit) =
        machine::ms(device, || Ok(CausalDit::load(&config.dit, &*source, shard, device, kind)?))?;
    let mut generator = Generator::new(config, dit, 1);
    if options.no_graphs {
        generator.without_graphs("--no-graphs");
    }
    let mut stream = Stream::new(generator, options, subject, member);
    for _ in 0..options.warm_up {
        stream.chunk()?;
    }
    let (mut times, mut phases, mut forwards) = (Vec::new(), BTreeMap::<_, Vec<f64>>::new(), 0);
    let ((), power) = power::during(device, || {
        for _ in 0..options.chunks {
            let (ms, output) = machine::ms(device, || stream.chunk())?;
            times.push(ms);
            for (phase, took) in output.timings {
                phases.entry(phase.to_owned()).or_default().push(took.as_secs_f64() * 1e3);
            }
            forwards = output.generator_calls.read()?;
        }
        Ok(())
    })?;
    if !member.is_first() {
        return Ok(Value::Null);
    }
    let memory = machine::memory(device)?;
    let ops = stream.generator.dit().ops();
    let heads = (config.dit.num_heads / i64::from(world), config.dit.head_dim());
    let ceiling = Ceiling::measure(device, kind, heads, ops)?;
    let parts = tch::no_grad(|| parts::measure(config, subject.latents(), (kind, device), world, ops))?;
    let chunk = Summary::of(times);
    let phases: Map<_, _> = phases.into_iter().map(|(phase, ms)| (phase, Summary::of(ms).json())).collect();
    Ok(line::join([
        json!({"bench": "generator"}),
        machine::conditions(device)?,
        subject.conditions(),
        options.weights.conditions(kind),
        options::generator_conditions(config, ops),
        json!({
            "world_size": world, "ranks_share_a_gpu": options.group.share_gpu,
            "graphs": graphs(&stream.generator), "bias": options.bias, "chunks": options.chunks, "warm_up_chunks_excluded": options.warm_up,
            "forwards": forwards, "load_s": load / 1e3, "chunk_ms": chunk.json(), "host_phases_ms": phases, "parts_ms": parts,
            "power": power,
        }),
        shares(config, subject.size, world, chunk.median, ceiling),
        memory,
    ]))
}

/// `captured`, or why the chunks were none.
fn graphs(generator: &Generator) -> String {
    match generator.graphs() {
        _ if generator.has_graph(0) => "captured".to_owned(),
        Graphs::On => "none: no call is like the one before".to_owned(),
        Graphs::Off { because } => format!("none: {because}"),
    }
}

/// What a chunk is in operations, and how near a rank comes to what its device can do.
fn shares(config: &ModelConfig, size: (u32, u32), world: u32, chunk_ms: f64, ceiling: Ceiling) -> Value {
    let work = Work::of_chunk(config, size);
    let ranks = f64::from(world);
    let flops = work.products + work.attention;
    let rate = flops / ranks / chunk_ms / 1e9;
    let least_ms = (work.products / ceiling.gemm + work.attention / ceiling.attention) / ranks / 1e9;
    json!({
        "model_tflop": flops / 1e12, "tflop_per_s": rate,
        "gemm_tflop_per_s": ceiling.gemm, "gemm_sustained_tflop_per_s": ceiling.gemm_sustained,
        "attention_tflop_per_s": ceiling.attention,
        "share_of_gemm": rate / ceiling.gemm, "share_of_gemm_sustained": ceiling.gemm_sustained.map(|gemm| rate / gemm),
        "ceiling_ms": least_ms, "share_of_ceiling": least_ms / chunk_ms,
    })
}

/// One stream, chunk after chunk.
struct Stream<'a> {
    generator: Generator,
    options: &'a Options,
    subject: &'a Subject,
    member: &'a Member,
    next: i64,
    kept: Option<Tensor>,
}

impl<'a> Stream<'a> {
    fn new(generator: Generator, options: &'a Options, subject: &'a Subject, member: &'a Member) -> Self {
        Self { generator, options, subject, member, next: 0, kept: None }
    }

    /// The same on every rank.
    fn chunk(&mut self) -> Result<ChunkOutput> {
        let (config, seed) = (&self.subject.config, self.options.seed);
        let [_, frames, channels, rows, columns] = self.subject.latents();
        let noise = block_noise(seed, self.next, frames, channels, rows, columns)?;
        let first = self.next == 0;
        let text = (config.dit.text_len, config.dit.text_dim);
        let prompt = first.then(|| block_noise(seed, 0, 1, 1, text.0, text.1)?.f_view([1, text.0, text.1]));
        let prompt = prompt.transpose()?;
        let tp = Tp { collective: &*self.member.collective, deadline: Instant::now() + ranks::CALL };
        let args = ChunkArgs {
            current_start_frame: self.next,
            latents_in: &noise,
            conditioning: prompt.as_ref(),
            context_frames: self.kept.as_ref().filter(|_| config.family.recomputes()),
            denoising_steps: &config.default_steps,
            base_seed: seed,
            kv_cache_attention_bias: self.options.bias,
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
