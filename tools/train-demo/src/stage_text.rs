//! The text encoder alone, on what prompts say (see [`crate::attributes`]): minutes on a CPU, before or between the stages
//! that learn from pictures.

use std::path::PathBuf;

use anyhow::Result;
use demo_world::caption::{Style, caption_and_main};
use demo_world::scene::{Scene, Split};
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
    /// Muon instead of Adam for the matrices of the blocks.
    #[arg(long)]
    pub muon: bool,
    /// Weight of the squared difference from what the folder's encoder makes of prompts, which a transformer has learnt to read;
    /// but the words for the main object are to be as in a prompt without a second one.
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

/// Steps between two lines of the curve.
const REPORT: i64 = 50;

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
    let read = |parameters: &mut Parameters| {
        parameters.import(&[(text::PREFIX, &options.model.join("text.safetensors"))])
    };
    let before = if options.keep > 0.0 {
        let mut before = parameters.copy();
        read(&mut before)?;
        Some(no_grad(|| before.averaged(Kind::Float)))
    } else {
        None
    };
    if options.go_on {
        read(&mut parameters)?;
    }
    if options.muon {
        parameters.use_muon();
    }
    let captions = Captions::open(&options.model.join("tokenizer.json"), config.text.text_len)?;
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut budget = Budget::new(&options.length, (0, 0.0), &options.out.join("text.csv"))?;
    let (mut sum, mut last) = (Tensor::zeros([2], (Kind::Float, device)), f64::NAN);
    while budget.goes_on() {
        let prompts = draw(
            Split::Training,
            Style::Varied,
            options.companions,
            options.batch,
            &captions,
            &mut rng,
            device,
        )?;
        let w = parameters.weights(Kind::Float);
        let embed = || encoder.forward(&w, &prompts.ids);
        let embedded = if options.frozen { no_grad(embed) } else { embed() };
        let loss = reader.loss(&w, &embedded, &prompts.values);
        let moved = before.as_ref().map_or_else(
            || loss.zeros_like(),
            |before| (&embedded - no_grad(|| prompts.kept(&encoder, before))).square().mean(Kind::Float),
        );
        (&loss + &moved * options.keep).backward();
        let _ = parameters.update(options.rate * rate(budget.progress(), budget.step, 50), 0.99);
        no_grad(|| sum += Tensor::stack(&[&loss, &moved], 0));
        budget.step += 1;
        if budget.step % REPORT == 0 || !budget.goes_on() {
            let steps = (budget.step - 1) % REPORT + 1;
            let mean = Vec::<f64>::try_from(&sum / steps as f64)?;
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
                let prompts = draw(split, style, companions, options.examined, &captions, &mut rng, device)?;
                rights(&reader, &w, &encoder.forward(&w, &prompts.ids), &prompts.values)
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

/// Prompts and what they say.
struct Prompts {
    /// `[B, L]` int64
    ids: Tensor,
    /// Those of [`attributes::of`].
    values: Tensor,
    /// The prompts without their second objects, `[B, L]` int64.
    main: Tensor,
    /// Where each token is in `main`, `[B, L]` int64; -1 where it is not.
    places: Tensor,
}

impl Prompts {
    /// What an encoder makes of them `[B, L, dim]`: of the tokens of the main part as if there were no other.
    fn kept(&self, encoder: &TrainText, w: &Weights) -> Tensor {
        let (whole, main) = (encoder.forward(w, &self.ids), encoder.forward(w, &self.main));
        let places = self.places.unsqueeze(-1);
        let main = main.gather(1, &places.clamp_min(0).expand_as(&main), false);
        main.where_self(&places.ge(0), &whole)
    }
}

fn draw(
    split: Split,
    style: Style,
    companions: f64,
    count: usize,
    captions: &Captions,
    rng: &mut ChaCha8Rng,
    device: Device,
) -> Result<Prompts> {
    let scenes: Vec<Scene> = (0..count).map(|_| Scene::draw_with(split, companions, rng)).collect();
    let (mut ids, mut main, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for scene in &scenes {
        let (whole, part) = caption_and_main(scene, style, rng);
        let (whole, part) = (captions.ids(&whole)?, captions.ids(&part)?);
        places.extend(aligned(&whole, &part));
        ids.extend(whole);
        main.extend(part);
    }
    let tensor = |ids: &[i64]| Tensor::from_slice(ids).view([count as i64, -1]).to_device(device);
    Ok(Prompts {
        ids: tensor(&ids),
        values: attributes::of(&scenes, device),
        main: tensor(&main),
        places: tensor(&places),
    })
}

/// Where each token of `whole` is in `part`, -1 where it is not: what both begin with, and what both end with.
fn aligned(whole: &[i64], part: &[i64]) -> Vec<i64> {
    let ahead = whole.iter().zip(part).take_while(|(a, b)| a == b && **a != 0).count();
    let used = |ids: &[i64]| ids.iter().take_while(|id| **id != 0).count();
    let (whole_used, part_used) = (used(whole), used(part));
    let from_end = whole[..whole_used].iter().rev().zip(part[ahead.min(part_used)..part_used].iter().rev());
    let behind = from_end.take_while(|(a, b)| a == b).count();
    (0..whole.len())
        .map(|at| match at {
            _ if at < ahead => at as i64,
            _ if (whole_used - behind..whole_used).contains(&at) => (part_used - (whole_used - at)) as i64,
            _ => -1,
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_has_no_place_and_the_rest_its_own() {
        for (whole, part, places) in [
            ([5, 6, 7, 8, 1, 0], [5, 8, 1, 0, 0, 0], [0, -1, -1, 1, 2, -1]),
            ([5, 6, 7, 8, 1, 0], [7, 8, 1, 0, 0, 0], [-1, -1, 0, 1, 2, -1]),
            ([5, 6, 5, 6, 1, 0], [5, 6, 1, 0, 0, 0], [0, 1, -1, -1, 2, -1]),
            ([5, 6, 7, 1, 0, 0], [5, 6, 7, 1, 0, 0], [0, 1, 2, 3, -1, -1]),
        ] {
            assert_eq!(aligned(&whole, &part), places, "{whole:?}, {part:?}");
        }
    }
}
