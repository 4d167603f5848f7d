//! How often a model shows what it was asked for.

use std::path::PathBuf;

use anyhow::Result;
use demo_world::caption::{Style, caption};
use demo_world::clip::{Frame, Mix};
use demo_world::measure::{Meter, Score};
use demo_world::motion::State;
use demo_world::render::Renderer;
use demo_world::scene::{Scene, Split};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tch::{Device, Kind};

use crate::codec::Codec;
use crate::look::bytes;
use crate::samples::CHUNK_FRAMES;
use crate::served::{Served, pixels_of};
use crate::sheet;
use crate::stage_vae::{compute_kind, read_config};

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
    /// The world itself draws the first chunk: how well is it continued?
    #[arg(long)]
    pub continued: bool,
    /// Nothing is generated: the world's own clips go through the VAE, which is the best that the model could do.
    #[arg(long, conflicts_with = "continued")]
    pub reconstructed: bool,
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
    let config = read_config(&options.model.join("config.json"))?;
    let codec = Codec::load(&config.vae, &options.model, device, compute_kind(device))?;
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let style = if options.rephrased { Style::Rephrased } else { Style::Varied };
    let renderer = Renderer::default();
    let (meter, mut scores, mut shown) = (Meter::default(), [Score::default(); 2], Vec::new());
    for n in 0..options.prompts {
        let split = [Split::Training, Split::HeldOut][n % 2];
        let scene = Scene::draw(split, &mut rng);
        let text = caption(&scene, style, &mut rng);
        let frames = if options.reconstructed {
            reconstructed(&codec, scene, options.chunks)?
        } else {
            let first = options.continued.then(|| first_chunk(&renderer, scene));
            let prompts = vec![text.as_str(); options.chunks];
            served.stream(&prompts, first.as_deref(), options.seed + n as u64)?
        };
        let late = &frames[frames.len().saturating_sub(LOOKED_AT)..];
        let seen = meter.look(late, scene.companion.map(|companion| companion.corner));
        if !scores[n % 2].add(&scene, &seen) {
            println!("missed: {text:?}: {seen:?}");
        }
        if shown.len() < SHOWN && options.sheet.is_some() {
            shown.push(pixels_of(&frames));
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
    let line = json!({"chunks": options.chunks, "rephrased": options.rephrased, "continued": options.continued,
                      "reconstructed": options.reconstructed, "seed": options.seed,
                      "trained": line(&scores[0]), "held_out": line(&scores[1])});
    println!("{line}");
    Ok(())
}

/// The first frames of a stream that starts in the middle.
fn first_frames(scene: Scene, count: usize) -> Vec<Frame> {
    let (mix, mut state) = (Mix::of(scene), State::start(scene.motion, (0.0, 0.0)));
    let first = mix.show(&state);
    std::iter::once(first).chain(mix.play(&mut state, count - 1)).collect()
}

fn first_chunk(renderer: &Renderer, scene: Scene) -> Vec<Vec<u8>> {
    first_frames(scene, CHUNK_FRAMES[0]).iter().map(|frame| renderer.draw(frame)).collect()
}

/// A stream of `chunks` chunks as it comes back from the VAE.
fn reconstructed(codec: &Codec, scene: Scene, chunks: usize) -> Result<Vec<Vec<u8>>> {
    let frames = first_frames(scene, CHUNK_FRAMES[0] + CHUNK_FRAMES[1] * chunks.saturating_sub(1));
    let pixels = codec.decode(&codec.encode_frames(&[frames]));
    bytes(&pixels.get(0).to_kind(Kind::Float))
}
