//! Time of one chunk of a named model on the CPU, with ranks as threads over the loopback collective.
//!
//! `cargo run --release -p kinemesh-wan --example chunk_time -- [model] [world size] [height] [width] [chunks]`
//!
//! Prints the median time of a recompute chunk and its phases on rank 0.

use std::time::{Duration, Instant};

use collectives::loopback::{Loopback, Rendezvous};
use tch::{Device, Kind, Tensor};
use wan::config::ModelConfig;
use wan::dit::{CausalDit, Shard, Tp};
use wan::generator::{ChunkArgs, ChunkOutput, Generator};
use wan::noise::block_noise;
use wan::weights::SyntheticSource;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: u32| args.get(i).map_or(Ok(default), |a| a.parse());
    let config = ModelConfig::named(args.first().map_or("tiny", String::as_str))?;
    let (default_height, default_width) = config.sizes[0];
    let (world, chunks) = (number(1, 2)?, number(4, 20)?);
    let (height, width) = (number(2, default_height)?, number(3, default_width)?);
    tch::set_num_threads(1);

    let rendezvous = Rendezvous::create(world)?;
    let rank = |rank| run_rank(&config, &rendezvous, rank, world, (height, width), chunks);
    let outputs = std::thread::scope(|scope| {
        let rank = &rank;
        let ranks: Vec<_> = (0..world).map(|r| scope.spawn(move || rank(r))).collect();
        let joined = ranks.into_iter().map(|r| r.join().map_err(|_| Failure::from("a rank panicked"))?);
        joined.collect::<Result<Vec<_>, _>>()
    })?;

    let mut times = outputs[0].iter().map(|(time, _)| *time).collect::<Vec<_>>();
    times.sort();
    println!(
        "{} {height}x{width} world {world}: median {:?} over {} chunks",
        config.name,
        times[times.len() / 2],
        times.len()
    );
    if let Some((_, last)) = outputs[0].last() {
        for (phase, time) in &last.timings {
            println!("  {phase}: {time:?}");
        }
    }
    Ok(())
}

/// Makes the chunks on one rank and returns how long each but the first took.
fn run_rank(
    config: &ModelConfig,
    rendezvous: &Rendezvous,
    rank: u32,
    world: u32,
    (height, width): (u32, u32),
    chunks: u32,
) -> Result<Vec<(Duration, ChunkOutput)>, Failure> {
    let deadline = Instant::now() + Duration::from_secs(3600);
    let collective = Loopback::connect(rendezvous, rank, world, deadline)?;
    let tp = Tp { collective: &collective, deadline };
    let source = SyntheticSource::new(1);
    let dit = CausalDit::load(&config.dit, &source, Shard { rank, world }, Device::Cpu, Kind::Float)?;
    let mut generator = Generator::new(config, dit, 1);
    let (h, w) = config.latent_size(height, width);
    let prompt = Tensor::ones([1, 16, config.dit.text_dim], (Kind::Float, Device::Cpu));
    let mut kept: Option<Tensor> = None;
    let mut outputs = Vec::new();
    for chunk in 0..i64::from(chunks) {
        let current_start_frame = chunk * config.num_frame_per_block;
        let noise =
            block_noise(42, current_start_frame, config.num_frame_per_block, config.dit.in_dim, h, w)?;
        let started = Instant::now();
        let output = generator.generate(
            0,
            &ChunkArgs {
                current_start_frame,
                latents_in: &noise,
                conditioning: (chunk == 0).then_some(&prompt),
                context_frames: kept.as_ref().filter(|_| config.family.recomputes()),
                denoising_steps: &config.default_steps,
                base_seed: 42,
                kv_cache_attention_bias: config.default_bias,
                init_cache: chunk == 0,
                reset_kv_cache: false,
                reset_crossattn_cache: false,
            },
            &tp,
        )?;
        kept = Some(output.latents.shallow_clone());
        if chunk > 0 {
            outputs.push((started.elapsed(), output));
        }
    }
    Ok(outputs)
}
