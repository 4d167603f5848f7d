//! Blending of prompt embeddings: between several prompts at one time, and from one prompt to the next over time.
//!
//! Embeddings are `[1, text_len, dim]`, rows past the prompt zero; all that meet in one call have one shape and device.

use tch::{Kind, Tensor};

mod blender;
mod transition;

pub use blender::Blender;
pub use transition::{Transition, Walk};

/// Below this angle (radians) a row is blended linearly: there the arc is a line, and the sine of its angle divides.
const PARALLEL: f64 = 1e-4;
/// Keeps the direction of a zero row finite.
const EPSILON: f64 = 1e-8;

/// How embeddings are mixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Weighted sum.
    #[default]
    Linear,
    /// Along the arc between each pair of rows. Defined for two embeddings.
    Slerp,
}

/// Mixes `embeds` by `weights`, which are divided by their sum; where that is not positive, all count the same.
///
/// [`Interpolation::Slerp`] applies to exactly two embeddings. Otherwise the result is the weighted sum, brought to the
/// weighted mean of the inputs' Frobenius norms, so that a mix of unlike prompts is not fainter than they are.
///
/// # Panics
/// Without embeddings, or with another number of weights than of embeddings.
pub fn blend(embeds: &[Tensor], weights: &[f64], interpolation: Interpolation) -> Tensor {
    assert!(!embeds.is_empty(), "blend of no embeddings");
    assert_eq!(embeds.len(), weights.len(), "blend needs one weight for each embedding");
    let weights = normalised(weights);
    if let (Interpolation::Slerp, [from, to], [_, t]) = (interpolation, embeds, weights.as_slice()) {
        return slerp(from, to, *t);
    }
    tch::no_grad(|| {
        let mut sum = embeds[0].zeros_like();
        let mut norm = 0.0;
        for (embed, weight) in embeds.iter().zip(&weights) {
            sum += embed * *weight;
            norm += weight * frobenius(embed);
        }
        let scale = norm / frobenius(&sum).max(EPSILON);
        sum * scale
    })
}

/// The mix of two embeddings at `t` in [0, 1] on the way from the first to the second. Linear mixes keep no norm here:
/// a transition passes through every point of the line.
fn interpolate(from: &Tensor, to: &Tensor, t: f64, interpolation: Interpolation) -> Tensor {
    match interpolation {
        Interpolation::Linear => tch::no_grad(|| from * (1.0 - t) + to * t),
        Interpolation::Slerp => slerp(from, to, t),
    }
}

/// Spherical interpolation, row by row. Rows without an arc of their own (parallel or opposite to within [`PARALLEL`])
/// are blended linearly; the reference does so only when every row is parallel, and lets a single one vanish.
fn slerp(from: &Tensor, to: &Tensor, t: f64) -> Tensor {
    tch::no_grad(|| {
        let (a, b) = (from.to_kind(Kind::Float), to.to_kind(Kind::Float));
        let direction = |x: &Tensor| x / (x.norm_scalaropt_dim(2.0, [-1], true) + EPSILON);
        let cosine = (direction(&a) * direction(&b)).sum_dim_intlist([-1].as_slice(), true, None::<Kind>);
        let angle = cosine.clamp(-1.0, 1.0).acos();
        let sine = angle.sin();
        let arc = ((&angle * (1.0 - t)).sin() * &a + (&angle * t).sin() * &b) / (&sine + EPSILON);
        let line = &a * (1.0 - t) + &b * t;
        line.where_self(&sine.lt(PARALLEL), &arc).to_kind(from.kind())
    })
}

fn normalised(weights: &[f64]) -> Vec<f64> {
    let sum: f64 = weights.iter().sum();
    if sum > 0.0 {
        weights.iter().map(|w| w / sum).collect()
    } else {
        vec![1.0 / weights.len() as f64; weights.len()]
    }
}

fn frobenius(x: &Tensor) -> f64 {
    x.to_kind(Kind::Float).norm().double_value(&[])
}
