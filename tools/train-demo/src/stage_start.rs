//! Starts: the first chunk of a stream at the first timestep, on few clips that start in the middle.
//!
//! At timestep 1000 nothing of a first chunk is known but the prompt. A model that saw streams start anywhere answers with
//! the mean of all places, a smear that the later steps cannot take back. This stage gives every stream the same start, so
//! that the answer is a function of the prompt. It is small enough for a CPU.

use std::path::PathBuf;

use anyhow::Result;
use demo_world::caption::{Style, caption};
use demo_world::clip::Mix;
use demo_world::motion::State;
use demo_world::scene::{Scene, Split};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor, no_grad};
use wan::rope::Rope;

use crate::budget::{Budget, Length};
use crate::codec::Codec;
use crate::conditional::Conditional;
use crate::parameters::{Layout, Parameters};
use crate::sampler::STEPS;
use crate::samples::CHUNK_FRAMES;
use crate::scenes::rate;
use crate::stage_vae::{compute_kind, read_config};
use crate::tokens::Captions;
use crate::{dit, text};

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub length: Length,
    /// Folder of the model to start from.
    #[arg(long)]
    pub model: PathBuf,
    /// Where the new `dit.safetensors` and `text.safetensors` and the curve go.
    #[arg(long)]
    pub out: PathBuf,
    #[arg(long, default_value_t = 16)]
    pub batch: usize,
    /// Clips that are encoded once and used throughout.
    #[arg(long, default_value_t = 400)]
    pub clips: usize,
    #[arg(long, default_value_t = 3e-4)]
    pub rate: f64,
    /// Computes in bf16, also on a CPU.
    #[arg(long)]
    pub half: bool,
    /// Steps between exports.
    #[arg(long, default_value_t = 50)]
    pub export_every: i64,
    #[arg(long, default_value_t = 4)]
    pub seed: u64,
}

/// Trains and writes. Returns the last mean loss.
///
/// # Errors
/// A file cannot be read or written.
pub fn run(options: &Options, device: Device) -> Result<f64> {
    std::fs::create_dir_all(&options.out)?;
    let config = read_config(&options.model.join("config.json"))?;
    let kind = if device.is_cuda() || options.half { Kind::BFloat16 } else { Kind::Float };
    let mut layout = Layout::default();
    let model = Conditional::new(&config, &mut layout, device);
    let mut parameters = Parameters::new(layout, device);
    let files = |folder: &std::path::Path| (folder.join("text.safetensors"), folder.join("dit.safetensors"));
    let (text, transformer) = files(&options.model);
    parameters.import(&[(text::PREFIX, &text), (dit::PREFIX, &transformer)])?;
    let codec = Codec::load(&config.vae, &options.model, device, compute_kind(device))?;
    let captions = Captions::open(&options.model.join("tokenizer.json"), config.text.text_len)?;
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let scenes: Vec<Scene> = (0..options.clips).map(|_| Scene::draw(Split::Training, &mut rng)).collect();
    let latents: Vec<Tensor> = scenes.chunks(8).map(|scenes| starts(scenes, &codec)).collect();
    let latents = Tensor::cat(&latents, 0).to_kind(Kind::Float);
    println!("starts: {} clips encoded", options.clips);
    let mut budget = Budget::new(&options.length, (0, 0.0), &options.out.join("starts.csv"))?;
    let (mut rope, mut last) = (Rope::new(config.dit.head_dim(), device), f64::NAN);
    let timesteps = Tensor::full([options.batch as i64], STEPS[0], (Kind::Double, device));
    let mut sum = Tensor::zeros([1], (Kind::Float, device));
    let export = |parameters: &Parameters| -> Result<()> {
        let (text, transformer) = files(&options.out);
        parameters.export(text::PREFIX, &text)?;
        parameters.export(dit::PREFIX, &transformer)
    };
    while budget.goes_on() {
        let rows: Vec<i64> = (0..options.batch).map(|_| rng.random_range(0..scenes.len() as i64)).collect();
        let texts: Vec<String> =
            rows.iter().map(|row| caption(&scenes[*row as usize], Style::Varied, &mut rng)).collect();
        let target = latents.index_select(0, &Tensor::from_slice(&rows).to_device(device));
        let w = parameters.weights(kind);
        let prompt = model.condition(&w, &captions.batch(&texts)?.to_device(device));
        let noise = target.randn_like();
        let flow = model.dit.flow(&w, &mut rope, &noise, &timesteps, None, &prompt);
        // Sigma is 1: the clean prediction is noise minus flow.
        let loss = (noise - flow.to_kind(Kind::Float) - target).square().mean(Kind::Float);
        loss.backward();
        let _ = parameters.update(options.rate * rate(budget.progress(), budget.step, 20), 0.97);
        no_grad(|| sum += &loss);
        budget.step += 1;
        if budget.step % 10 == 0 || !budget.goes_on() {
            let steps = (budget.step - 1) % 10 + 1;
            last = f64::try_from(&sum)? / steps as f64;
            budget.report(&[("start", last)])?;
            sum = sum.zeros_like();
        }
        if budget.step % options.export_every == 0 {
            export(&parameters)?;
        }
    }
    budget.finish();
    export(&parameters)?;
    Ok(last)
}

/// First chunks of streams that start in the middle: `[B, 3, z, h, w]`.
fn starts(scenes: &[Scene], codec: &Codec) -> Tensor {
    let clips: Vec<_> = scenes
        .iter()
        .map(|scene| {
            let (mix, mut state) = (Mix::of(*scene), State::start(scene.motion, (0.0, 0.0)));
            let mut frames = vec![mix.show(&state)];
            frames.extend(mix.play(&mut state, CHUNK_FRAMES[0] - 1));
            frames
        })
        .collect();
    codec.encode_frames(&clips)
}
