//! How often a model shows what it was asked for.

use std::path::PathBuf;

use anyhow::Result;
use demo_world::SIDE;
use demo_world::caption::{Style, caption};
use demo_world::measure::{Meter, Score};
use demo_world::scene::{Scene, Split};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::served::Served;
use crate::sheet;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Folder of the model.
    #[arg(long, default_value = "models/demo")]
    pub model: PathBuf,
    #[arg(long, default_value_t = 200)]
    pub prompts: usize,
    /// Chunks of each stream; the last four are looked at.
    #[arg(long, default_value_t = 10)]
    pub chunks: usize,
    /// Sentence forms that training never showed.
    #[arg(long)]
    pub rephrased: bool,
    /// A contact sheet of the first streams.
    #[arg(long)]
    pub sheet: Option<PathBuf>,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Frames that are looked at.
const LOOKED_AT: usize = 48;
/// Streams on the sheet.
const SHOWN: usize = 12;

/// Streams prompts, every second one of a combination that training never showed; prints what was missed and a JSON line.
///
/// # Errors
/// The model cannot be loaded, or fails.
pub fn run(options: &Options, device: Device) -> Result<()> {
    let mut served = Served::load(&options.model, device)?;
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let style = if options.rephrased { Style::Rephrased } else { Style::Varied };
    let (meter, mut scores, mut shown) = (Meter::default(), [Score::default(); 2], Vec::new());
    for n in 0..options.prompts {
        let split = [Split::Training, Split::HeldOut][n % 2];
        let scene = Scene::draw(split, &mut rng);
        let text = caption(&scene, style, &mut rng);
        let frames = served.stream(&vec![text.as_str(); options.chunks], options.seed + n as u64)?;
        let late = &frames[frames.len().saturating_sub(LOOKED_AT)..];
        let seen = meter.look(late, scene.companion.map(|companion| companion.corner));
        if !scores[n % 2].add(&scene, &seen) {
            println!("missed: {text:?}: {seen:?}");
        }
        if shown.len() < SHOWN && options.sheet.is_some() {
            shown.push(clip(&frames));
        }
    }
    if let Some(path) = &options.sheet {
        sheet::write(&shown, 8, path)?;
    }
    let line = |score: &Score| {
        let percent = |count| (score.percent(count) * 10.0).round() / 10.0;
        json!({"clips": score.clips, "colour": percent(score.colour), "shape": percent(score.shape),
               "motion": percent(score.motion), "background": percent(score.background)})
    };
    println!("trained combinations: {}", scores[0]);
    println!("held out: {}", scores[1]);
    let line = json!({"chunks": options.chunks, "rephrased": options.rephrased, "seed": options.seed,
                      "trained": line(&scores[0]), "held_out": line(&scores[1])});
    println!("{line}");
    Ok(())
}

/// `[3, F, S, S]` in [-1, 1].
fn clip(frames: &[Vec<u8>]) -> Tensor {
    let side = SIDE as i64;
    let clip = Tensor::from_slice(&frames.concat()).view([frames.len() as i64, side, side, 3]);
    clip.permute([3, 0, 1, 2]).to_kind(Kind::Float) / 127.5 - 1.0
}
