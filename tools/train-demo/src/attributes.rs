//! What a prompt says, read off its embedding: one linear layer for each attribute, on the mean of the tokens.
//!
//! A prompt with two objects binds two shapes and two colours; from pictures alone the encoder learns that last, for a wrong
//! binding costs little where one scene in a few has a second object. Asked for the attributes it learns it at once, and a
//! mean over tokens is what cross-attention can take over with no further work.

use demo_world::scene::{Background, Colour, Corner, Motion, Scene, Shape, Size};
use tch::{Device, Kind, Tensor};

use crate::codec::upload;
use crate::parameters::{Init, Layout, Slot, Weights};

/// Prefix of its parameters, which are never exported.
pub const PREFIX: &str = "attributes:";

/// Attributes in the order of [`values`], and how many values each has; the last three are of a second object, or none.
pub const ATTRIBUTES: [(&str, usize); 8] = [
    ("shape", Shape::ALL.len()),
    ("colour", Colour::ALL.len()),
    ("size", Size::ALL.len()),
    ("motion", Motion::ALL.len()),
    ("background", Background::COUNT),
    ("second shape", Shape::ALL.len() + 1),
    ("second colour", Colour::ALL.len() + 1),
    ("corner", Corner::ALL.len() + 1),
];

/// Index of each attribute's value.
fn values(scene: &Scene) -> [usize; ATTRIBUTES.len()] {
    let second = scene.companion;
    let or_none = |index: Option<usize>, count: usize| index.unwrap_or(count);
    [
        scene.shape.index(),
        scene.colour.index(),
        scene.size.index(),
        scene.motion.index(),
        scene.background.index(),
        or_none(second.map(|c| c.shape.index()), Shape::ALL.len()),
        or_none(second.map(|c| c.colour.index()), Colour::ALL.len()),
        or_none(second.map(|c| c.corner.index()), Corner::ALL.len()),
    ]
}

/// Values of scenes, `[B, 8]` int64.
pub fn of<'a>(scenes: impl IntoIterator<Item = &'a Scene>, device: Device) -> Tensor {
    let all: Vec<i64> =
        scenes.into_iter().flat_map(|scene| values(scene).map(|value| value as i64)).collect();
    upload(&Tensor::from_slice(&all).view([-1, ATTRIBUTES.len() as i64]), device)
}

#[derive(Debug)]
pub struct Reader {
    weight: Slot,
    bias: Slot,
}

impl Reader {
    pub fn new(dim: i64, layout: &mut Layout) -> Self {
        let outputs: usize = ATTRIBUTES.iter().map(|(_, count)| count).sum();
        let weight = layout.add(
            format!("{PREFIX}weight"),
            &[outputs as i64, dim],
            Init::Normal(0.5 / (dim as f64).sqrt()),
        );
        Self { weight, bias: layout.add(format!("{PREFIX}bias"), &[outputs as i64], Init::Constant(0.0)) }
    }

    /// Scores of every attribute's values `[B, n]` f32, from text embeddings `[B, L, dim]` whose padding is zero.
    pub fn scores(&self, w: &Weights, embedded: &Tensor) -> Vec<Tensor> {
        let tokens = embedded.abs().amax([2].as_slice(), true).gt(0.0).sum_dim_intlist(
            [1].as_slice(),
            false,
            Kind::Float,
        );
        let mean = embedded.sum_dim_intlist([1].as_slice(), false, Kind::Float) / tokens.clamp_min(1.0);
        let all = mean.linear(&w[self.weight].to_kind(Kind::Float), Some(&w[self.bias].to_kind(Kind::Float)));
        all.split_with_sizes(ATTRIBUTES.map(|(_, count)| count as i64), 1)
    }

    /// Mean cross-entropy over attributes and prompts; `values` are those of [`of`].
    pub fn loss(&self, w: &Weights, embedded: &Tensor, values: &Tensor) -> Tensor {
        let losses: Vec<Tensor> = (0..)
            .zip(self.scores(w, embedded))
            .map(|(i, scores)| scores.cross_entropy_for_logits(&values.select(1, i)))
            .collect();
        Tensor::stack(&losses, 0).mean(Kind::Float)
    }
}
