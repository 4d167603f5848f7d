//! The measuring tool on clips whose attributes are known.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use demo_world::SIDE;
use demo_world::clip::Mix;
use demo_world::measure::{Meter, Score};
use demo_world::motion::State;
use demo_world::render::Renderer;
use demo_world::scene::{Motion, Scene, Size, Split};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Looks at so many clips of scenes that `pick` likes, each frame changed by `change`.
fn score(clips: usize, pick: impl Fn(&Scene) -> bool, change: impl Fn(Vec<u8>) -> Vec<u8>) -> Score {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (meter, renderer, mut score) = (Meter::default(), Renderer::default(), Score::default());
    while score.clips < clips {
        let split = if score.clips.is_multiple_of(2) { Split::Training } else { Split::HeldOut };
        let scene = Scene::draw(split, &mut rng);
        if !pick(&scene) {
            continue;
        }
        let mut state =
            State::start(scene.motion, (rng.random_range(-2.0..2.0), rng.random_range(-2.0..2.0)));
        let frames: Vec<_> = Mix::of(scene).play(&mut state, 57)[9..]
            .iter()
            .map(|frame| change(renderer.draw(frame)))
            .collect();
        let seen = meter.look(&frames, scene.companion.map(|companion| companion.corner));
        if !score.add(&scene, &seen) {
            println!("{scene:?}: {seen:?}");
        }
    }
    score
}

/// Each pixel the mean of the nine around it.
fn softened(frame: &[u8]) -> Vec<u8> {
    let at =
        |x: usize, y: usize, channel: usize| u32::from(frame[3 * (y % SIDE * SIDE + x % SIDE) + channel]);
    let mean = |n: usize| {
        let (x, y, channel) = (n / 3 % SIDE, n / 3 / SIDE, n % 3);
        let sum: u32 = (0..9).map(|k| at(x + SIDE - 1 + k % 3, y + SIDE - 1 + k / 3, channel)).sum();
        u8::try_from((sum + 4) / 9).unwrap()
    };
    (0..frame.len()).map(mean).collect()
}

#[test]
fn the_measuring_tool_is_right_on_what_the_world_draws() {
    let score = score(200, |_| true, |frame| frame);
    println!("ground truth: {score}");
    for count in [score.colour, score.shape, score.motion, score.background] {
        assert!(score.percent(count) >= 98.0, "{score}");
    }
}

/// Twelve rounds leave sharp templates right in five of six.
#[test]
fn a_small_shape_with_soft_edges_is_still_what_it_is() {
    let small = |scene: &Scene| scene.size == Size::Small && scene.motion != Motion::Growing;
    for rounds in [2, 12] {
        let score = score(24, small, |frame| (0..rounds).fold(frame, |frame, _| softened(&frame)));
        println!("small, softened {rounds} times: {score}");
        assert!(score.percent(score.shape) >= 98.0, "{score}");
    }
}
