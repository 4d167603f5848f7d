//! The walk from one embedding to another, one step a chunk.

use super::{Interpolation, frobenius, interpolate};
use tch::Tensor;

/// Embeddings nearer than this (Frobenius norm of the difference) need no transition.
const SAME: f64 = 0.01;

/// A walk from `source` to `target` in `steps` steps. The first step gives the source and the last exactly the target;
/// those between are evenly spaced.
///
/// With one step the only embedding is the target. The reference gives the source there and never arrives; here a
/// transition always ends at its target.
#[derive(Debug)]
pub struct Transition {
    source: Tensor,
    target: Tensor,
    steps: u32,
    taken: u32,
    interpolation: Interpolation,
}

impl Transition {
    /// `None` where there is nothing to walk: no steps, or source and target are nearer than 0.01. The caller then takes
    /// the target at once.
    pub fn new(source: &Tensor, target: &Tensor, steps: u32, interpolation: Interpolation) -> Option<Self> {
        if steps == 0 || frobenius(&(target - source)) < SAME {
            return None;
        }
        let (source, target) = (source.shallow_clone(), target.shallow_clone());
        Some(Self { source, target, steps, taken: 0, interpolation })
    }

    /// The embedding of the next step; the target again once [`finished`](Self::finished).
    #[expect(clippy::should_implement_trait, reason = "it never ends: past its steps it stays at the target")]
    pub fn next(&mut self) -> Tensor {
        let step = self.taken;
        self.taken = self.steps.min(self.taken + 1);
        if step + 1 >= self.steps {
            return self.target.shallow_clone();
        }
        if step == 0 {
            return self.source.shallow_clone();
        }
        let t = f64::from(step) / f64::from(self.steps - 1);
        interpolate(&self.source, &self.target, t, self.interpolation)
    }

    /// Whether the target has been given.
    pub fn finished(&self) -> bool {
        self.taken == self.steps
    }

    /// Where the walk ends.
    pub fn target(&self) -> &Tensor {
        &self.target
    }
}
