//! The measuring tool on clips whose attributes are known.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use demo_world::clip::Mix;
use demo_world::measure::{Meter, Score};
use demo_world::motion::State;
use demo_world::render::Renderer;
use demo_world::scene::{Scene, Split};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[test]
fn the_measuring_tool_is_right_on_what_the_world_draws() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (meter, renderer, mut score) = (Meter::default(), Renderer::default(), Score::default());
    for n in 0..200 {
        let split = if n % 2 == 0 { Split::Training } else { Split::HeldOut };
        let scene = Scene::draw(split, &mut rng);
        let mut state =
            State::start(scene.motion, (rng.random_range(-2.0..2.0), rng.random_range(-2.0..2.0)));
        let frames: Vec<_> =
            Mix::of(scene).play(&mut state, 57)[9..].iter().map(|frame| renderer.draw(frame)).collect();
        let seen = meter.look(&frames, scene.companion.map(|companion| companion.corner));
        if !score.add(&scene, &seen) {
            println!("{scene:?}: {seen:?}");
        }
    }
    println!("ground truth: {score}");
    for count in [score.colour, score.shape, score.motion, score.background] {
        assert!(score.percent(count) >= 98.0, "{score}");
    }
}
