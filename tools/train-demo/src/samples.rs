//! Clips to learn from: three chunks of a stream, often with a change of the prompt between them.

use demo_world::clip::{Frame, Mix};
use demo_world::motion::State;
use demo_world::scene::{Scene, Shape, Size, Split};
use rand::Rng;

/// Chunks of a clip.
pub const CHUNKS: usize = 3;
/// Frames of each chunk of a stream: the first latent of all is one frame, every other four.
pub const CHUNK_FRAMES: [usize; CHUNKS] = [9, 12, 12];
/// Frames of a clip.
pub const FRAMES: usize = 33;
/// The frame whose encoding leads the context of the third chunk.
pub const HEAD_FRAME: usize = 12;

/// What clips are drawn from: the world, or more of what is hard in it.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct World {
    /// How far from the middle streams start, in standard deviations of the world's. With 0 all start in the middle.
    #[arg(long, default_value_t = 0.0)]
    pub spread: f32,
    /// Share of scenes with a second object. More than the world has: a prompt with two objects is the harder to understand.
    #[arg(long, default_value_t = 0.35)]
    pub companions: f64,
    /// Share of scenes that are drawn among the small objects with corners or a hole, beside those that chance brings.
    #[arg(long, default_value_t = 0.25)]
    pub details: f64,
}

impl World {
    /// As it is, its streams starting anywhere near the middle.
    pub const EVEN: Self = Self { spread: 1.0, companions: Scene::COMPANIONS, details: 0.0 };

    fn scene(&self, rng: &mut impl Rng) -> Scene {
        let detailed = rng.random_bool(self.details);
        loop {
            let scene = Scene::draw_with(Split::Training, self.companions, rng);
            let hard = scene.size == Size::Small && !matches!(scene.shape, Shape::Circle | Shape::Square);
            if hard || !detailed {
                return scene;
            }
        }
    }
}

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
    pub fn draw(world: World, rng: &mut impl Rng) -> Self {
        let from = world.scene(rng);
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
            world.spread * ((0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0)
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

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn details_are_small_and_have_corners_or_a_hole() {
        let hard = |details: f64| {
            let (world, mut rng) = (World { details, ..World::EVEN }, ChaCha8Rng::seed_from_u64(1));
            let scenes: Vec<Scene> = (0..400).map(|_| Sample::draw(world, &mut rng).from).collect();
            assert!(scenes.iter().all(|scene| !scene.held_out()));
            let hard = |scene: &&Scene| {
                scene.size == Size::Small && !matches!(scene.shape, Shape::Circle | Shape::Square)
            };
            scenes.iter().filter(hard).count()
        };
        assert_eq!(hard(1.0), 400);
        // By chance about a fifth.
        let (even, more) = (hard(0.0), hard(0.25));
        assert!((50..120).contains(&even) && more > even + 50, "{even} and {more} of 400");
    }
}
