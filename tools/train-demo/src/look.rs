//! What a model makes of prompts: contact sheets, and how often the pixels show what was asked for.

use std::path::Path;

use anyhow::Result;
use demo_world::SIDE;
use demo_world::caption::{Style, caption};
use demo_world::measure::{Meter, Score, Seen};
use demo_world::scene::{Scene, Split};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};
use wan::rope::Rope;

use crate::codec::Codec;
use crate::conditional::Conditional;
use crate::parameters::Weights;
use crate::sampler::{Given, Sampler, next_context};
use crate::sheet;
use crate::tokens::Captions;

const CHUNKS: i64 = 5;

/// Generates `count` scenes, half of them held out, and prints their scores.
///
/// # Errors
/// A sheet cannot be written.
pub fn at(
    count: usize,
    out: &Path,
    captions: &Captions,
    model: &Conditional,
    w: &Weights,
    codec: &Codec,
    rope: &mut Rope,
) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(77);
    let scenes: Vec<(Scene, String)> = (0..count)
        .map(|n| {
            let split = if n % 2 == 0 { Split::Training } else { Split::HeldOut };
            let scene = Scene::draw(split, &mut rng);
            let text = caption(&scene, Style::Varied, &mut rng);
            (scene, text)
        })
        .collect();
    let texts: Vec<String> = scenes.iter().map(|(_, text)| text.clone()).collect();
    let device = codec.device();
    let ids = captions.batch(&texts)?.to_device(device);
    let text = model.condition(w, &ids);
    tch::manual_seed(5);
    let side = SIDE as i64 / 8;
    let noise = || Tensor::randn([count as i64, 3, codec.channels(), side, side], (Kind::Float, device));
    let sampler = Sampler::default();
    let mut stream = sampler.chunk(Given { model, w, context: None, text: &text }, rope, &noise());
    for _ in 1..CHUNKS {
        let context = next_context(codec, &stream);
        let next = sampler.chunk(Given { model, w, context: Some(&context), text: &text }, rope, &noise());
        stream = Tensor::cat(&[stream, next], 1);
    }
    // [B, 3, F, H, W]
    let pixels = codec.decode(&stream).to_kind(Kind::Float);
    let shown: Vec<Tensor> = (0..count.min(12) as i64).map(|i| pixels.get(i)).collect();
    sheet::write(&shown, 4, &out.join("samples.png"))?;
    std::fs::write(out.join("samples.txt"), texts[..count.min(12)].join("\n") + "\n")?;
    let clips = (0..count as i64).map(|i| bytes(&pixels.get(i))).collect::<Result<Vec<_>>>()?;
    let (meter, mut score) = (Meter::default(), Score::default());
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let meter = &meter;
        let look = |clip: &[Vec<u8>], scene: Scene| meter.look(clip, scene.companion.map(|c| c.corner));
        let threads: Vec<_> = clips
            .iter()
            .zip(&scenes)
            // The first chunk is left out: motion has to be under way.
            .map(|(clip, (scene, _))| scope.spawn(move || look(&clip[9..], *scene)))
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    for (seen, (scene, text)) in seen.into_iter().zip(&scenes) {
        if !score.add(scene, &seen) {
            println!("missed: {text:?} ({scene:?}): {seen:?}");
        }
    }
    println!("look: {score}");
    Ok(())
}

/// Frames of `[3, F, H, W]` in [-1, 1] as RGB bytes.
///
/// # Errors
/// The tensor cannot be read.
pub fn bytes(clip: &Tensor) -> Result<Vec<Vec<u8>>> {
    let clip = ((clip + 1.0) * 127.5).round().clamp(0.0, 255.0).to_kind(Kind::Uint8);
    let frames = clip.permute([1, 2, 3, 0]).contiguous().to_device(tch::Device::Cpu);
    (0..frames.size()[0]).map(|i| Ok(Vec::<u8>::try_from(frames.get(i).flatten(0, -1))?)).collect()
}
