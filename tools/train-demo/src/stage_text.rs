//! The text encoder alone, on what prompts say (see [`crate::attributes`]): minutes on a CPU, before or between the stages
//! that learn from pictures.

use std::path::PathBuf;

use anyhow::Result;
use demo_world::caption::{Style, caption};
use demo_world::scene::{Corner, Scene, Split};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor, no_grad};

use crate::attributes::{self, ATTRIBUTES, Reader};
use crate::budget::{Budget, Length};
use crate::parameters::{Layout, Parameters, Weights};
use crate::scenes::rate;
use crate::stage_vae::read_config;
use crate::text::{self, TrainText};
use crate::tokens::Captions;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub length: Length,
    /// Folder with `config.json`, `tokenizer.json`, and with `--go-on` `text.safetensors`.
    #[arg(long)]
    pub model: PathBuf,
    /// Starts from the folder's weights.
    #[arg(long)]
    pub go_on: bool,
    /// Only reads the attributes off what the encoder says, and leaves the encoder as it is.
    #[arg(long, requires = "go_on")]
    pub frozen: bool,
    /// Where `text.safetensors` and the curve go.
    #[arg(long)]
    pub out: PathBuf,
    #[arg(long, default_value_t = 128)]
    pub batch: usize,
    #[arg(long, default_value_t = 1e-3)]
    pub rate: f64,
    /// With `--go-on`: weight of the squared difference from what the folder's encoder makes of prompts with one object, which
    /// a transformer may have learnt to read.
    #[arg(long, default_value_t = 0.0)]
    pub keep: f64,
    /// Share of scenes with a second object.
    #[arg(long, default_value_t = 0.5)]
    pub companions: f64,
    /// Prompts of each kind that the encoder is examined with in the end.
    #[arg(long, default_value_t = 1000)]
    pub examined: usize,
    #[arg(long, default_value_t = 3)]
    pub seed: u64,
}

/// Trains, writes, and prints how often each attribute is read right. Returns the last mean loss.
///
/// # Errors
/// A file cannot be read or written.
pub fn run(options: &Options, device: Device) -> Result<f64> {
    std::fs::create_dir_all(&options.out)?;
    let config = read_config(&options.model.join("config.json"))?;
    tch::manual_seed(options.seed as i64);
    let mut layout = Layout::default();
    let (encoder, reader) =
        (TrainText::new(&config.text, &mut layout, device), Reader::new(config.text.dim, &mut layout));
    let mut parameters = Parameters::new(layout, device);
    if options.go_on {
        parameters.import(&[(text::PREFIX, &options.model.join("text.safetensors"))])?;
    }
    let before = no_grad(|| parameters.averaged(Kind::Float));
    let captions = Captions::open(&options.model.join("tokenizer.json"), config.text.text_len)?;
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut budget = Budget::new(&options.length, (0, 0.0), &options.out.join("text.csv"))?;
    let (mut sum, mut last) = (Tensor::zeros([2], (Kind::Float, device)), f64::NAN);
    while budget.goes_on() {
        let (ids, values) = draw(
            Split::Training,
            Style::Varied,
            options.companions,
            options.batch,
            &captions,
            &mut rng,
            device,
        )?;
        let w = parameters.weights(Kind::Float);
        let embedded = encoder.forward(&w, &ids);
        let embedded = if options.frozen { embedded.detach() } else { embedded };
        let loss = reader.loss(&w, &embedded, &values);
        let kept = (&embedded - no_grad(|| encoder.forward(&before, &ids))).square();
        let alone = values.select(1, ATTRIBUTES.len() as i64 - 1).eq(Corner::ALL.len() as i64);
        let kept = (kept * alone.view([-1, 1, 1])).mean(Kind::Float);
        (&loss + &kept * options.keep).backward();
        let _ = parameters.update(options.rate * rate(budget.progress(), budget.step, 50), 0.99);
        no_grad(|| sum += Tensor::stack(&[&loss, &kept], 0));
        budget.step += 1;
        if budget.step % 50 == 0 || !budget.goes_on() {
            let mean = Vec::<f64>::try_from(&sum / 50.0)?;
            last = mean[0];
            budget.report(&[("attributes", last), ("moved", mean[1])])?;
            sum = sum.zeros_like();
        }
    }
    budget.finish();
    let w = no_grad(|| parameters.averaged(Kind::Float));
    for (split, style) in [
        (Split::Training, Style::Varied),
        (Split::Training, Style::Rephrased),
        (Split::HeldOut, Style::Varied),
    ] {
        for companions in [0.0, 1.0] {
            let rights = no_grad(|| -> Result<_> {
                let (ids, values) =
                    draw(split, style, companions, options.examined, &captions, &mut rng, device)?;
                rights(&reader, &w, &encoder.forward(&w, &ids), &values)
            })?;
            let named: Vec<String> = ATTRIBUTES
                .iter()
                .zip(rights)
                .map(|((name, _), right)| format!("{name} {right:.1}"))
                .collect();
            println!("{split:?}, {style:?}, second objects {companions}: {} %", named.join(", "));
        }
    }
    if !options.frozen {
        parameters.export(text::PREFIX, &options.out.join("text.safetensors"))?;
    }
    Ok(last)
}

/// Ids `[B, L]` of prompts, and the values of what they say.
fn draw(
    split: Split,
    style: Style,
    companions: f64,
    count: usize,
    captions: &Captions,
    rng: &mut ChaCha8Rng,
    device: Device,
) -> Result<(Tensor, Tensor)> {
    let scenes: Vec<Scene> = (0..count).map(|_| Scene::draw_with(split, companions, rng)).collect();
    let texts: Vec<String> = scenes.iter().map(|scene| caption(scene, style, rng)).collect();
    Ok((captions.batch(&texts)?.to_device(device), attributes::of(&scenes, device)))
}

/// How often each attribute is read right, in per cent.
fn rights(reader: &Reader, w: &Weights, embedded: &Tensor, values: &Tensor) -> Result<Vec<f64>> {
    (0..)
        .zip(reader.scores(w, embedded))
        .map(|(i, scores)| {
            let right = scores
                .argmax(1, false)
                .eq_tensor(&values.select(1, i))
                .to_kind(Kind::Float)
                .mean(Kind::Float);
            Ok(100.0 * f64::try_from(right)?)
        })
        .collect()
}
