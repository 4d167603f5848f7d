//! Stage 1: the VAE.
//!
//! L1 and squares to the pixels, L1 to the differences of neighbours (arXiv 1511.05440), and a small Kullback-Leibler term
//! that keeps the latents smooth and of moderate size (Kingma and Welling, arXiv 1312.6114). The world has no texture, so
//! neither a perceptual nor an adversarial loss is needed.

use std::path::PathBuf;

use anyhow::{Context, Result};
use demo_world::clip::Frame;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor, no_grad};
use wan::config::ModelConfig;

use crate::budget::{Budget, Length};
use crate::parameters::{Layout, Parameters};
use crate::samples::{Sample, World};
use crate::scenes::{BatchRenderer, rate};
use crate::sheet;
use crate::vae::TrainVae;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub length: Length,
    /// Model config to train; its latent statistics are measured and written anew.
    #[arg(long, default_value = "models/demo/config.json")]
    pub config: PathBuf,
    /// Where weights, config, curve and samples go.
    #[arg(long)]
    pub out: PathBuf,
    /// State to go on from, if it is there, and to save to.
    #[arg(long)]
    pub state: Option<PathBuf>,
    /// Folder with a `vae.safetensors` to start from.
    #[arg(long)]
    pub from: Option<PathBuf>,
    /// The encoder, and with it the latents and their statistics, stays as it is: a transformer may be trained beside it.
    #[arg(long, requires = "from")]
    pub decoder_only: bool,
    #[arg(long, default_value_t = 16)]
    pub batch: usize,
    /// Frames of a clip: one, and a multiple of four.
    #[arg(long, default_value_t = 17)]
    pub frames: usize,
    #[arg(long, default_value_t = 2e-3)]
    pub rate: f64,
    /// Weight of the squared differences.
    #[arg(long, default_value_t = 1.0)]
    pub squares: f64,
    /// Weight of the differences between neighbours.
    #[arg(long, default_value_t = 1.0)]
    pub edges: f64,
    /// Weight of the Kullback-Leibler term.
    #[arg(long, default_value_t = 3e-4)]
    pub kl: f64,
    /// cuDNN times its algorithms before it chooses one.
    #[arg(long)]
    pub tune: bool,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Side of the windows that most of the training sees; they begin on whole latents.
const WINDOW: i64 = 96;
/// From here on, whole pictures in smaller batches: attention in the middle sees as many positions as it will.
const WHOLE_FROM: f64 = 0.75;

/// What a trained VAE computes in on a device: f16 is faster than bf16 on an H100 for convolutions of few channels.
pub fn compute_kind(device: Device) -> Kind {
    if device.is_cuda() { Kind::Half } else { Kind::Float }
}

/// What it is trained in.
fn training_kind(device: Device) -> Kind {
    if device.is_cuda() { Kind::BFloat16 } else { Kind::Float }
}

/// Reads a model config.
///
/// # Errors
/// The file cannot be read, or is no valid config.
pub fn read_config(path: &std::path::Path) -> Result<ModelConfig> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let config: ModelConfig = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    config.validate()?;
    Ok(config)
}

/// Clips for one step: a function of seed and step alone, so that a resumed run sees what an uncut one would have seen.
fn clips(options: &Options, step: i64, count: usize) -> Vec<Frame> {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed.wrapping_mul(1_000_003).wrapping_add_signed(step));
    (0..count)
        .flat_map(|_| {
            let mut frames = Sample::draw(World::EVEN, &mut rng).frames(&mut rng);
            // The change of a prompt may be anywhere in the clip.
            let skip = step.unsigned_abs() as usize * 4 % (frames.len() - options.frames + 1);
            frames.drain(..skip);
            frames.truncate(options.frames);
            frames
        })
        .collect()
}

/// `[N, 3, S, S]` -> `[B, 3, F, S, S]`.
fn as_clips(pictures: &Tensor, batch: usize) -> Tensor {
    let size = pictures.size();
    pictures.view([batch as i64, -1, 3, size[2], size[3]]).transpose(1, 2).contiguous()
}

/// Mean over clips `[B, C, F, H, W]`, in which the first frame counts as much as a group of four: it is the only one of its
/// latent, and every context begins with one that was encoded so.
fn by_frame(values: &Tensor) -> Tensor {
    let rest = values.size()[2] - 1;
    let first = values.narrow(2, 0, 1).mean(Kind::Float);
    if rest == 0 {
        return first;
    }
    (first * 4.0 + values.narrow(2, 1, rest).mean(Kind::Float) * rest) / (4 + rest)
}

/// Mean distance of the differences between neighbours, across and down: what makes an outline crisp.
fn edges(difference: &Tensor) -> Tensor {
    let along = |axis: i64| {
        let count = difference.size()[axis as usize] - 1;
        by_frame(&(difference.narrow(axis, 1, count) - difference.narrow(axis, 0, count)).abs())
    };
    along(3) + along(4)
}

/// What a step learns from: `[B, 3, F, H, W]`.
fn pictures(options: &Options, renderer: &BatchRenderer, step: i64, whole: bool) -> Tensor {
    let count = if whole { (options.batch * 2 / 5).max(1) } else { options.batch };
    let pixels = as_clips(&no_grad(|| renderer.draw(&clips(options, step, count))), count);
    if whole {
        return pixels;
    }
    let places = (pixels.size()[3] - WINDOW) / 8 + 1;
    let (row, column) = (step * 7 % places * 8, step * 5 / places % places * 8);
    pixels.narrow(3, row, WINDOW).narrow(4, column, WINDOW)
}

/// Trains, then writes `vae.safetensors`, `config.json` and a sheet of reconstructions. Returns the last mean loss.
///
/// # Errors
/// A file cannot be read or written.
pub fn run(options: &Options, device: Device) -> Result<f64> {
    std::fs::create_dir_all(&options.out)?;
    let mut config = read_config(&options.config)?;
    tch::manual_seed(options.seed as i64);
    tch::Cuda::cudnn_set_benchmark(options.tune);
    let mut layout = Layout::default();
    let vae = TrainVae::new(&config.vae, &mut layout);
    let mut parameters = Parameters::new(layout, device);
    println!("vae: {} parameters on {device:?}", parameters.count());
    if let Some(from) = &options.from {
        parameters.import(&[("", &from.join("vae.safetensors"))])?;
    }
    let begun = match &options.state {
        Some(state) if state.is_file() => parameters.load_state(state)?,
        _ => (0, 0.0),
    };
    let renderer = BatchRenderer::new(device);
    let kind = training_kind(device);
    let mut budget = Budget::new(&options.length, begun, &options.out.join("vae.csv"))?;
    let (mut sums, mut counted, mut last) = (Tensor::zeros([3], (Kind::Float, device)), 0.0, f64::NAN);
    while budget.goes_on() {
        tch::manual_seed((options.seed as i64) << 32 | budget.step);
        let pixels = pictures(options, &renderer, budget.step, budget.progress() > WHOLE_FROM);
        let w = parameters.weights(kind);
        let encoded = || vae.encode(&w, &pixels.to_kind(kind));
        let (mean, log_variance) = if options.decoder_only { no_grad(encoded) } else { encoded() };
        let (mean, log_variance) =
            (mean.to_kind(Kind::Float), log_variance.to_kind(Kind::Float).clamp(-10.0, 4.0));
        let z = &mean + (&log_variance * 0.5).exp() * mean.randn_like();
        let decoded = vae.decode(&w, &z.to_kind(kind)).to_kind(Kind::Float);
        // Squares see what absolute differences give up: stars of a few pixels.
        let difference = &decoded - &pixels;
        let off = by_frame(&difference.abs());
        let squares = by_frame(&difference.square());
        let kl = (mean.square() + log_variance.exp() - 1.0 - &log_variance).mean(Kind::Float) * 0.5;
        let loss = &off + squares * options.squares + edges(&difference) * options.edges + &kl * options.kl;
        loss.backward();
        let rate = options.rate * rate(budget.progress(), budget.step, 100);
        let norm = parameters.update(rate, 0.998);
        no_grad(|| sums += Tensor::stack(&[off, kl, norm], 0));
        (budget.step, counted) = (budget.step + 1, counted + 1.0);
        if budget.step % 20 == 0 || !budget.goes_on() {
            let means = Vec::<f64>::try_from(&sums / counted)?;
            last = means[0];
            budget.report(&[("l1", means[0]), ("kl", means[1]), ("norm", means[2])])?;
            (sums, counted) = (sums.zeros_like(), 0.0);
        }
    }
    budget.finish();
    if let Some(state) = &options.state {
        parameters.save_state(state, budget.step, budget.seconds())?;
    }
    finish(options, &mut config, &vae, &parameters, &renderer, kind)?;
    Ok(last)
}

fn finish(
    options: &Options,
    config: &mut ModelConfig,
    vae: &TrainVae,
    parameters: &Parameters,
    renderer: &BatchRenderer,
    kind: Kind,
) -> Result<()> {
    parameters.export("", &options.out.join("vae.safetensors"))?;
    let _guard = tch::no_grad_guard();
    let w = parameters.averaged(kind);
    let (mut means, mut off, mut shown) = (Vec::new(), Vec::new(), None);
    let count = options.batch.min(8);
    for step in 0..8 {
        let pixels = as_clips(&renderer.draw(&clips(options, -1 - step, count)), count);
        let (mean, _) = vae.encode(&w, &pixels.to_kind(kind));
        let decoded = vae.decode(&w, &mean).to_kind(Kind::Float).clamp(-1.0, 1.0);
        off.push((&decoded - &pixels).square().mean(Kind::Float));
        means.push(mean.to_kind(Kind::Float));
        shown = Some((pixels, decoded));
    }
    if !options.decoder_only {
        let latents = Tensor::cat(&means, 0);
        let by_channel: &[i64] = &[0, 2, 3, 4];
        config.vae.latent_mean = Vec::try_from(latents.mean_dim(by_channel, false, Kind::Double))?;
        config.vae.latent_std =
            Vec::try_from(latents.std_dim(by_channel, true, false).to_kind(Kind::Double))?;
    }
    std::fs::write(options.out.join("config.json"), serde_json::to_string_pretty(config)? + "\n")?;
    let error = f64::try_from(Tensor::stack(&off, 0).mean(Kind::Double))? / 4.0;
    println!("vae: {:.2} dB on clips that were not trained on", -10.0 * error.log10());
    println!("vae: latent deviations {:.2?}", config.vae.latent_std);
    if let Some((pixels, decoded)) = shown {
        let count = pixels.size()[0].min(4);
        let rows = (0..count).flat_map(|clip| [pixels.get(clip), decoded.get(clip)]).collect::<Vec<_>>();
        sheet::write(&rows, 2, &options.out.join("vae.png"))?;
    }
    Ok(())
}
