//! How right the measuring tool itself is, on what the world draws, sent through the codec of the streams.

use contract::model::Size;
use demo_world::SIDE;
use demo_world::clip::Mix;
use demo_world::measure::{Meter, Score};
use demo_world::motion::State;
use demo_world::render::Renderer;
use demo_world::scene::Scene;
use rand::Rng;
use serde_json::json;
use video::{I420, VideoDecoder, VideoEncoder};

use super::theatre::creation;
use super::wish::{numbers, split};
use super::{LOOKED_AT, Row, Section};

/// Frames before those that are looked at.
const BEFORE: usize = 9;

/// # Panics
/// If the codec fails.
#[must_use]
pub fn section(clips: usize, seed: u64) -> Section {
    let row = Row::of("the measuring tool, on ground truth through the codec", &score(clips, seed));
    Section { name: "truth", rows: vec![row], remark: None }
}

/// # Panics
/// If the codec fails.
#[must_use]
pub fn score(clips: usize, seed: u64) -> Score {
    let (meter, renderer, mut score) = (Meter::default(), Renderer::default(), Score::default());
    let mut codec = Codec::new();
    for number in 0..clips {
        let mut rng = numbers(seed, number);
        let scene = Scene::draw(split(number), &mut rng);
        let mut state =
            State::start(scene.motion, (rng.random_range(-2.0..2.0), rng.random_range(-2.0..2.0)));
        let drawn = Mix::of(scene).play(&mut state, BEFORE + LOOKED_AT);
        let frames = codec.pass(drawn.iter().map(|frame| renderer.draw(frame)));
        let seen = meter.look(&frames[BEFORE..], scene.companion.map(|companion| companion.corner));
        score.add(&scene, &seen);
    }
    score
}

/// As in a session that was created like those of the screenings.
struct Codec {
    size: Size,
    encoder: Box<dyn VideoEncoder>,
    decoder: Box<dyn VideoDecoder>,
}

impl Codec {
    fn new() -> Self {
        let session = creation(&json!({}));
        let side = u32::try_from(SIDE).unwrap_or(u32::MAX);
        let size = Size { width: side, height: side };
        let encoder = video::encoder(session.codec, size, session.bitrate_kbps).expect("an encoder");
        let decoder = video::decoder(session.codec).expect("a decoder");
        Self { size, encoder, decoder }
    }

    /// A clip's RGB pictures as a viewer gets them; it begins with a keyframe.
    fn pass(&mut self, frames: impl Iterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
        let coded = |(n, frame): (usize, Vec<u8>)| {
            let picture = I420::from_rgb(self.size, &frame);
            let unit = self.encoder.encode(&picture, n == 0).expect("an access unit");
            self.decoder.decode(&unit.data).expect("a picture").to_rgb()
        };
        frames.enumerate().map(coded).collect()
    }
}
