//! Clips to learn from: three chunks of a stream, often with a change of the prompt between them.

use demo_world::clip::{Frame, Mix};
use demo_world::motion::State;
use demo_world::scene::{Scene, Split};
use rand::Rng;

/// Chunks of a clip.
pub const CHUNKS: usize = 3;
/// Frames of each chunk of a stream: the first latent of all is one frame, every other four.
pub const CHUNK_FRAMES: [usize; CHUNKS] = [9, 12, 12];
/// Frames of a clip.
pub const FRAMES: usize = 33;
/// The frame whose encoding leads the context of the third chunk.
pub const HEAD_FRAME: usize = 12;

/// What a clip shows.
#[derive(Clone, Debug)]
pub struct Sample {
    pub from: Scene,
    pub to: Scene,
    /// How far each chunk is on the way.
    pub amounts: [f32; CHUNKS],
    /// Where a stream starts, in standard deviations; `None` for a clip out of the middle of one.
    pub start: Option<(f32, f32)>,
}

impl Sample {
    /// Of a world with this spread of starts and share of second objects.
    pub fn draw(spread: f32, companions: f64, rng: &mut impl Rng) -> Self {
        let from = Scene::draw_with(Split::Training, companions, rng);
        let to = from.changed(Split::Training, rng);
        let amounts = match rng.random_range(0..100) {
            0..45 => [0.0; CHUNKS],
            45..70 => [0.0, 0.0, 1.0],
            70..80 => [0.0, 1.0, 1.0],
            _ => {
                let steps = [2, 3, 4, 4, 6, 8][rng.random_range(0..6)];
                let first = rng.random_range(0..steps);
                std::array::from_fn(|chunk| (first + chunk).min(steps) as f32 / steps as f32)
            }
        };
        let mut normal = || {
            // Twelve uniforms are near enough to a normal draw.
            spread * ((0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0)
        };
        let start = (normal(), normal());
        let start = rng.random_bool(0.4).then_some(start);
        Self { from, to, amounts, start }
    }

    /// All frames.
    pub fn frames(&self, rng: &mut impl Rng) -> Vec<Frame> {
        let mix = |chunk: usize| Mix { from: self.from, to: self.to, amount: self.amounts[chunk] };
        let mut state = match self.start {
            Some(spread) => State::start(mix(0).motion(), spread),
            None => State::anywhere(&self.from, rng),
        };
        let mut frames = vec![mix(0).show(&state)];
        frames.extend(mix(0).play(&mut state, CHUNK_FRAMES[0] - 1));
        for (chunk, count) in CHUNK_FRAMES.into_iter().enumerate().skip(1) {
            frames.extend(mix(chunk).play(&mut state, count));
        }
        frames
    }
}
