//! Command line of the trainer.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use device::DeviceKind;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use train_demo::samples::{Sample, World};
use train_demo::{average, score, sheet, stage_model, stage_start, stage_text, stage_vae, tokens};

#[derive(Debug, Parser)]
#[command(about = "Trains the small model that ships.")]
struct Args {
    /// `auto`, `cpu` or `cuda:N`.
    #[arg(long, global = true, default_value = "auto")]
    device: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A contact sheet of training clips.
    World {
        #[arg(long)]
        out: PathBuf,
        #[arg(long, default_value_t = 12)]
        clips: usize,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// The tokenizer of the captions.
    Tokenizer {
        #[arg(long)]
        out: PathBuf,
        #[arg(long, default_value_t = 512)]
        vocabulary: usize,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Stage 1: the VAE.
    Vae(stage_vae::Options),
    /// Stage 2, and with `--rollout` stage 3: text encoder and transformer.
    Model(stage_model::Options),
    /// The text encoder alone, on what prompts say.
    Text(stage_text::Options),
    /// Starts of streams, on a trained model.
    Start(stage_start::Options),
    /// The mean of weights that were trained from the same start.
    Average {
        /// Folders with `dit.safetensors` and `text.safetensors`.
        #[arg(long, required = true, num_args = 2..)]
        of: Vec<PathBuf>,
        #[arg(long)]
        out: PathBuf,
    },
    /// How often a model shows what it is asked for.
    Score(score::Options),
}

fn main() -> Result<()> {
    let args = Args::parse();
    let kind: DeviceKind = args.device.parse()?;
    let device = device::resolve(kind, None)?.device;
    match args.command {
        Command::World { out, clips, seed } => world(&out, clips, seed, device),
        Command::Tokenizer { out, vocabulary, seed } => tokens::train(seed, vocabulary, &out),
        Command::Vae(options) => stage_vae::run(&options, device).map(drop),
        Command::Model(options) => stage_model::run(&options, device).map(drop),
        Command::Text(options) => stage_text::run(&options, device).map(drop),
        Command::Start(options) => stage_start::run(&options, device).map(drop),
        Command::Average { of, out } => average::run(&of, &out),
        Command::Score(options) => score::run(&options, device),
    }
}

fn world(out: &std::path::Path, clips: usize, seed: u64, device: tch::Device) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let renderer = train_demo::scenes::BatchRenderer::new(device);
    let rows: Vec<tch::Tensor> = (0..clips)
        .map(|_| {
            let sample = Sample::draw(World::EVEN, &mut rng);
            let text =
                demo_world::caption::caption(&sample.from, demo_world::caption::Style::Varied, &mut rng);
            println!("{text} -> {:?} {:?}", sample.to, sample.amounts);
            renderer.draw(&sample.frames(&mut rng)).transpose(0, 1)
        })
        .collect();
    sheet::write(&rows, 3, out)
}
