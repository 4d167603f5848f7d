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

/// How far a walk has come. Its target is not part of it.
#[derive(Debug)]
pub struct Walk {
    pub source: Tensor,
    pub steps: u32,
    pub taken: u32,
    pub interpolation: Interpolation,
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

    /// Goes on with a walk that was under way to `target`; `None` if it was at its end.
    pub(super) fn resume(walk: &Walk, target: &Tensor) -> Option<Self> {
        let (source, target) = (walk.source.shallow_clone(), target.shallow_clone());
        let Walk { steps, taken, interpolation, .. } = *walk;
        (taken < steps).then_some(Self { source, target, steps, taken, interpolation })
    }

    pub(super) fn walk(&self) -> Walk {
        let Self { steps, taken, interpolation, .. } = *self;
        Walk { source: self.source.shallow_clone(), steps, taken, interpolation }
    }

    /// The embedding of the next step; the target again once [`finished`](Self::finished).
    #[expect(clippy::should_implement_trait, reason = "it never ends: past its steps it stays at the target")]
    pub fn next(&mut self) -> Tensor {
        self.taken = self.steps.min(self.taken + 1);
        self.last()
    }

    /// The embedding of the last step taken; the source before the first one.
    pub(super) fn last(&self) -> Tensor {
        match self.taken {
            taken if taken == self.steps => self.target.shallow_clone(),
            0 | 1 => self.source.shallow_clone(),
            taken => {
                let t = f64::from(taken - 1) / f64::from(self.steps - 1);
                interpolate(&self.source, &self.target, t, self.interpolation)
            }
        }
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
