use demo_world::caption::{Style, caption};
use demo_world::scene::{Scene, Split};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// A scene, what a person would type for it, and the seed of the stream that shows it.
#[derive(Clone, Debug)]
pub struct Wish {
    pub scene: Scene,
    pub text: String,
    pub seed: u64,
}

impl Wish {
    pub(crate) fn parameters(&self) -> Value {
        json!({"prompts": prompts(&self.text), "base_seed": self.seed})
    }
}

pub(crate) fn prompts(text: &str) -> Value {
    json!([{"text": text, "weight": 1.0}])
}

/// The random numbers of one wish: the same whatever else is drawn, and however many.
pub(crate) fn numbers(seed: u64, number: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number as u64);
    rng
}

/// Every second one of a combination that training never showed.
pub(crate) fn split(number: usize) -> Split {
    [Split::Training, Split::HeldOut][number % 2]
}

/// Scenes depend on the seed alone: another style has other words for the same.
#[must_use]
pub fn wishes(count: usize, style: Style, seed: u64) -> Vec<Wish> {
    let wish = |number: usize| {
        let mut rng = numbers(seed, number);
        let scene = Scene::draw(split(number), &mut rng);
        let text = caption(&scene, style, &mut rng);
        Wish { scene, text, seed: seed + number as u64 }
    };
    (0..count).map(wish).collect()
}
