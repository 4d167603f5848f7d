//! Which embedding conditions the next chunk.

use super::{Interpolation, Transition, Walk};
use tch::Tensor;

/// The conditioning of one session over its chunks: a current embedding, and a transition where one is running.
#[derive(Debug)]
pub struct Blender {
    current: Tensor,
    transition: Option<Transition>,
    /// The current embedding has not been handed out yet.
    unseen: bool,
}

impl Blender {
    /// Starts at an embedding; the first [`advance`](Self::advance) reports it as changed.
    pub fn new(embedding: &Tensor) -> Self {
        Self { current: embedding.shallow_clone(), transition: None, unseen: true }
    }

    /// Where another blender was: at `heading`, or on the `walk` to it. As with [`new`](Self::new), the first embedding is
    /// reported as changed.
    pub fn resume(heading: &Tensor, walk: Option<&Walk>) -> Self {
        let transition = walk.and_then(|walk| Transition::resume(walk, heading));
        let current = transition.as_ref().map_or_else(|| heading.shallow_clone(), Transition::last);
        Self { current, transition, unseen: true }
    }

    /// The transition that is running, for [`resume`](Self::resume).
    pub fn walk(&self) -> Option<Walk> {
        self.transition.as_ref().map(Transition::walk)
    }

    /// Goes to an embedding with the next chunk and drops a running transition. An equal embedding changes nothing.
    pub fn set(&mut self, embedding: &Tensor) {
        self.transition = None;
        if self.current.size() != embedding.size() || self.current != *embedding {
            self.current = embedding.shallow_clone();
            self.unseen = true;
        }
    }

    /// Walks to an embedding over `steps` chunks, from where a running transition has come to. Where there is nothing to
    /// walk (see [`Transition::new`]) it is [`set`](Self::set) at once.
    pub fn transition(&mut self, target: &Tensor, steps: u32, interpolation: Interpolation) {
        match Transition::new(&self.current, target, steps, interpolation) {
            Some(transition) => self.transition = Some(transition),
            None => self.set(target),
        }
    }

    /// The embedding of the next chunk, whether it must be handed to the model anew, and whether a transition goes on
    /// after it. The step that reaches the target ends the transition, and the target is the embedding from then on.
    pub fn advance(&mut self) -> (Tensor, bool, bool) {
        let mut changed = std::mem::take(&mut self.unseen);
        if let Some(transition) = &mut self.transition {
            self.current = transition.next();
            changed = true;
            if transition.finished() {
                self.transition = None;
            }
        }
        (self.current.shallow_clone(), changed, self.transition.is_some())
    }

    /// The embedding of the chunk that was started last, or of the first one.
    pub fn current(&self) -> &Tensor {
        &self.current
    }

    /// Where the conditioning is heading: the target of a running transition, otherwise the current embedding.
    pub fn heading(&self) -> &Tensor {
        self.transition.as_ref().map_or(&self.current, Transition::target)
    }

    pub fn in_transition(&self) -> bool {
        self.transition.is_some()
    }
}
