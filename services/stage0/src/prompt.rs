//! What conditions a session's chunks: its prompts, and a transition where one is running.
//!
//! Texts are encoded only when something changes; what was encoded lately is kept, so that going back and forth between
//! prompts costs nothing.

use std::collections::VecDeque;

use contract::continuation::{StoredConditioning, StoredTransition};
use contract::error::Error;
use contract::params::{Interpolation, Parameters, Prompt};
use tch::Tensor;
use wan::blend::{self, Blender, Walk};

use crate::stored;

/// Encoded texts kept by a session.
const KEPT: usize = 32;

/// Encodes one text to `[1, text_len, text_dim]`.
pub(crate) type Encode<'a> = &'a mut dyn FnMut(&str) -> Result<Tensor, Error>;

/// The embedding of one chunk.
#[derive(Debug)]
pub(crate) struct Conditioning {
    pub embedding: Tensor,
    /// Not the embedding of the chunk before.
    pub changed: bool,
    /// A transition goes on after this chunk.
    pub transition_active: bool,
}

#[derive(Debug)]
pub(crate) struct PromptState {
    blender: Blender,
    /// Where the conditioning is or, in a transition, is heading.
    prompts: Vec<Prompt>,
    interpolation: Interpolation,
    encoded: Encoded,
}

impl PromptState {
    /// Starts at the prompts of `initial`; without any, at the empty prompt. A transition in it starts from there.
    ///
    /// # Errors
    /// A text cannot be encoded.
    pub(crate) fn new(initial: &Parameters, encode: Encode) -> Result<Self, Error> {
        let empty = || vec![Prompt { text: String::new(), weight: 1.0 }];
        let prompts = initial.prompts.clone().unwrap_or_else(empty);
        let interpolation = initial.prompt_interpolation_method.unwrap_or_default();
        let mut encoded = Encoded::default();
        let blender = Blender::new(&encoded.blend(&prompts, interpolation, encode)?);
        Ok(Self { blender, prompts, interpolation, encoded })
    }

    /// Where it stands, for [`restore`](Self::restore). No embedding is in it but the source of a running transition: what
    /// texts encode to can be had again.
    ///
    /// # Errors
    /// The source cannot be read.
    pub(crate) fn stored(&self) -> Result<StoredConditioning, Error> {
        let transition = self.blender.walk().map(|walk| -> Result<_, Error> {
            Ok(StoredTransition {
                source: stored::tensor(&walk.source)?,
                steps: walk.steps,
                taken: walk.taken,
                interpolation: match walk.interpolation {
                    blend::Interpolation::Linear => Interpolation::Linear,
                    blend::Interpolation::Slerp => Interpolation::Slerp,
                },
            })
        });
        let (prompts, interpolation) = (self.prompts.clone(), self.interpolation);
        Ok(StoredConditioning { prompts, interpolation, transition: transition.transpose()? })
    }

    /// Goes on from there.
    ///
    /// # Errors
    /// A text cannot be encoded, or the stored source is no embedding.
    pub(crate) fn restore(stored: &StoredConditioning, encode: Encode) -> Result<Self, Error> {
        let (prompts, interpolation) = (stored.prompts.clone(), stored.interpolation);
        let mut encoded = Encoded::default();
        let heading = encoded.blend(&prompts, interpolation, encode)?;
        let walk = stored.transition.as_ref().map(|transition| -> Result<_, Error> {
            let source = stored::shaped(&transition.source, &heading.size())?;
            let source = source.to_device(heading.device()).to_kind(heading.kind());
            let (steps, taken) = (transition.steps, transition.taken);
            Ok(Walk { source, steps, taken, interpolation: method(transition.interpolation) })
        });
        let blender = Blender::resume(&heading, walk.transpose()?.as_ref());
        Ok(Self { blender, prompts, interpolation, encoded })
    }

    /// Takes over what `update` says of prompts. Returns only what is now different. An update that names what is in
    /// force (or where a transition is heading) changes nothing; other prompts end a transition.
    ///
    /// # Errors
    /// A text cannot be encoded: then nothing has changed.
    pub(crate) fn apply(&mut self, update: &Parameters, encode: Encode) -> Result<Parameters, Error> {
        let mut changed = Parameters::default();
        let interpolation = update.prompt_interpolation_method.unwrap_or(self.interpolation);
        if let Some(transition) = update.transition.as_ref().filter(|t| t.target_prompts != self.prompts) {
            let target = self.encoded.blend(&transition.target_prompts, interpolation, encode)?;
            let method = method(transition.temporal_interpolation_method);
            self.blender.transition(&target, transition.num_steps, method);
            self.prompts.clone_from(&transition.target_prompts);
            changed.transition = Some(transition.clone());
        } else {
            // Prompts that ride along with a transition are overtaken by it.
            let new = update.prompts.as_ref().filter(|p| update.transition.is_none() && **p != self.prompts);
            let prompts = new.unwrap_or(&self.prompts);
            if new.is_some() || interpolation != self.interpolation {
                self.blender.set(&self.encoded.blend(prompts, interpolation, encode)?);
            }
            changed.prompts = new.cloned();
            if let Some(new) = new {
                self.prompts.clone_from(new);
            }
        }
        changed.prompt_interpolation_method = (interpolation != self.interpolation).then_some(interpolation);
        self.interpolation = interpolation;
        Ok(changed)
    }

    /// Encodes texts that an update will name, so that it need not wait for them.
    ///
    /// # Errors
    /// One cannot be encoded.
    pub(crate) fn prepare(&mut self, texts: &[String], encode: Encode) -> Result<(), Error> {
        texts.iter().try_for_each(|text| self.encoded.get(text, encode).map(|_| ()))
    }

    /// The embedding of the next chunk; a transition takes one step.
    pub(crate) fn advance(&mut self) -> Conditioning {
        let (embedding, changed, transition_active) = self.blender.advance();
        Conditioning { embedding, changed, transition_active }
    }
}

fn method(interpolation: Interpolation) -> blend::Interpolation {
    match interpolation {
        Interpolation::Linear => blend::Interpolation::Linear,
        Interpolation::Slerp => blend::Interpolation::Slerp,
    }
}

/// The texts encoded last, newest at the back.
#[derive(Debug, Default)]
struct Encoded(VecDeque<(String, Tensor)>);

impl Encoded {
    fn blend(
        &mut self,
        prompts: &[Prompt],
        interpolation: Interpolation,
        encode: Encode,
    ) -> Result<Tensor, Error> {
        let embeds =
            prompts.iter().map(|prompt| self.get(&prompt.text, encode)).collect::<Result<Vec<_>, Error>>()?;
        if let [only] = embeds.as_slice() {
            return Ok(only.shallow_clone());
        }
        let weights: Vec<f64> = prompts.iter().map(|prompt| prompt.weight).collect();
        Ok(blend::blend(&embeds, &weights, method(interpolation)))
    }

    fn get(&mut self, text: &str, encode: Encode) -> Result<Tensor, Error> {
        let known = self.0.iter().position(|(known, _)| known == text).and_then(|at| self.0.remove(at));
        let entry = match known {
            Some(entry) => entry,
            None => (text.to_owned(), encode(text)?),
        };
        let embedding = entry.1.shallow_clone();
        self.0.push_back(entry);
        if self.0.len() > KEPT {
            self.0.pop_front();
        }
        Ok(embedding)
    }
}

#[cfg(test)]
mod tests {
    use contract::error::Reason;
    use contract::params::Transition;
    use tch::{Device, Kind};

    use super::*;

    /// An encoder whose embeddings are recognisable, and which counts.
    struct Texts(Vec<String>);

    impl Texts {
        fn embedding(text: &str) -> Tensor {
            let base = text.bytes().fold(1.0, |sum, byte| sum * 1.5 + f64::from(byte));
            (Tensor::arange(12, (Kind::Float, Device::Cpu)) + base).cos().reshape([1, 3, 4])
        }

        fn encode(&mut self, text: &str) -> Result<Tensor, Error> {
            if text == "broken" {
                return Err(Error::new(Reason::Internal, "the tokenizer failed"));
            }
            self.0.push(text.to_owned());
            Ok(Self::embedding(text))
        }
    }

    fn prompts(text: &str) -> Parameters {
        Parameters { prompts: Some(list(text)), ..Parameters::default() }
    }

    fn list(text: &str) -> Vec<Prompt> {
        vec![Prompt { text: text.to_owned(), weight: 1.0 }]
    }

    fn transition(text: &str, num_steps: u32) -> Parameters {
        let method = Interpolation::Linear;
        let transition =
            Transition { target_prompts: list(text), num_steps, temporal_interpolation_method: method };
        Parameters { transition: Some(transition), ..Parameters::default() }
    }

    fn started(text: &str) -> (PromptState, Texts) {
        let mut texts = Texts(Vec::new());
        let mut state = PromptState::new(&prompts(text), &mut |text| texts.encode(text)).unwrap();
        assert!(state.advance().changed);
        (state, texts)
    }

    #[test]
    fn an_identical_prompt_changes_nothing() {
        let (mut state, mut texts) = started("a fox");
        let changed = state.apply(&prompts("a fox"), &mut |text| texts.encode(text)).unwrap();
        assert!(changed.is_empty() && !state.advance().changed);
        assert_eq!(texts.0, ["a fox"]);
    }

    #[test]
    fn a_new_prompt_holds_from_the_next_chunk_and_going_back_encodes_nothing() {
        let (mut state, mut texts) = started("a fox");
        for text in ["an owl", "a fox", "an owl"] {
            let changed = state.apply(&prompts(text), &mut |text| texts.encode(text)).unwrap();
            assert_eq!(changed.prompts, Some(list(text)));
            let next = state.advance();
            assert!(next.changed && next.embedding.equal(&Texts::embedding(text)));
            assert!(!state.advance().changed);
        }
        assert_eq!(texts.0, ["a fox", "an owl"]);
    }

    #[test]
    fn a_transition_ends_exactly_at_its_target_and_becomes_the_prompt() {
        for steps in [1, 2, 4, 7] {
            let (mut state, mut texts) = started("a fox");
            state.apply(&transition("an owl", steps), &mut |text| texts.encode(text)).unwrap();
            let walk: Vec<_> = (0..steps).map(|_| state.advance()).collect();
            let active: Vec<bool> = walk.iter().map(|step| step.transition_active).collect();
            assert_eq!(active, (1..=steps).map(|n| n < steps).collect::<Vec<_>>());
            assert!(walk.last().unwrap().embedding.equal(&Texts::embedding("an owl")), "{steps} steps");
            assert!(!state.advance().changed);
            let same = state.apply(&prompts("an owl"), &mut |text| texts.encode(text)).unwrap();
            assert!(same.is_empty());
            let back = state.apply(&prompts("a fox"), &mut |text| texts.encode(text)).unwrap();
            assert_eq!(back.prompts, Some(list("a fox")));
        }
    }

    #[test]
    fn a_restored_state_gives_the_embeddings_that_the_first_one_would_have_given() {
        for (steps, taken) in [(1, 0), (5, 0), (5, 1), (5, 2), (5, 4), (5, 5), (5, 7)] {
            let (mut state, mut texts) = started("a fox");
            state.apply(&transition("an owl", steps), &mut |text| texts.encode(text)).unwrap();
            (0..taken).for_each(|_| drop(state.advance()));
            let mut restored =
                PromptState::restore(&state.stored().unwrap(), &mut |text| texts.encode(text)).unwrap();
            // Turning round in the middle starts from where it is.
            let mut turned =
                PromptState::restore(&state.stored().unwrap(), &mut |text| texts.encode(text)).unwrap();
            for _ in 0..6 {
                let (first, second) = (state.advance(), restored.advance());
                assert!(first.embedding.equal(&second.embedding), "{steps} steps, {taken} taken");
                assert_eq!(first.transition_active, second.transition_active);
            }
            let (mut state, mut texts) = started("a fox");
            state.apply(&transition("an owl", steps), &mut |text| texts.encode(text)).unwrap();
            (0..taken).for_each(|_| drop(state.advance()));
            for state in [&mut state, &mut turned] {
                state.apply(&transition("a crow", 3), &mut |text| texts.encode(text)).unwrap();
            }
            for _ in 0..3 {
                assert!(state.advance().embedding.equal(&turned.advance().embedding), "turned at {taken}");
            }
        }
    }

    #[test]
    fn a_stored_source_of_another_shape_is_refused() {
        let (mut state, mut texts) = started("a fox");
        state.apply(&transition("an owl", 5), &mut |text| texts.encode(text)).unwrap();
        let mut stored = state.stored().unwrap();
        let source = &mut stored.transition.as_mut().unwrap().source;
        source.shape = vec![1, 4, 3];
        let error = PromptState::restore(&stored, &mut |text| texts.encode(text)).unwrap_err();
        assert_eq!(error.reason, Reason::BadShape);
    }

    #[test]
    fn other_prompts_end_a_transition_and_its_target_named_again_does_not() {
        let (mut state, mut texts) = started("a fox");
        state.apply(&transition("an owl", 6), &mut |text| texts.encode(text)).unwrap();
        state.advance();
        assert!(state.apply(&prompts("an owl"), &mut |text| texts.encode(text)).unwrap().is_empty());
        assert!(state.advance().transition_active);
        state.apply(&prompts("a fox"), &mut |text| texts.encode(text)).unwrap();
        let next = state.advance();
        assert!(!next.transition_active && next.embedding.equal(&Texts::embedding("a fox")));
    }

    #[test]
    fn weights_count_relative_to_one_another() {
        let (mut state, mut texts) = started("a fox");
        let blended = |weights: [f64; 2]| {
            let prompts = ["a fox", "an owl"].iter().zip(weights);
            let prompts = prompts.map(|(text, weight)| Prompt { text: (*text).to_owned(), weight }).collect();
            Parameters { prompts: Some(prompts), ..Parameters::default() }
        };
        state.apply(&blended([3.0, 1.0]), &mut |text| texts.encode(text)).unwrap();
        let first = state.advance().embedding;
        state.apply(&blended([300.0, 100.0]), &mut |text| texts.encode(text)).unwrap();
        assert!(first.allclose(&state.advance().embedding, 1e-6, 1e-6, false));
        state.apply(&blended([0.0, 1.0]), &mut |text| texts.encode(text)).unwrap();
        assert!(state.advance().embedding.allclose(&Texts::embedding("an owl"), 1e-5, 1e-5, false));
    }

    #[test]
    fn a_text_that_was_prepared_is_not_encoded_again() {
        let (mut state, mut texts) = started("a fox");
        state.prepare(&["an owl".to_owned()], &mut |text| texts.encode(text)).unwrap();
        assert!(!state.advance().changed, "it is not in force yet");
        state.apply(&prompts("an owl"), &mut |text| texts.encode(text)).unwrap();
        assert!(state.advance().embedding.equal(&Texts::embedding("an owl")));
        assert_eq!(texts.0, ["a fox", "an owl"]);
    }

    #[test]
    fn a_text_that_cannot_be_encoded_changes_nothing() {
        let (mut state, mut texts) = started("a fox");
        assert!(state.apply(&prompts("broken"), &mut |text| texts.encode(text)).is_err());
        assert!(!state.advance().changed);
        let changed = state.apply(&prompts("a fox"), &mut |text| texts.encode(text)).unwrap();
        assert!(changed.is_empty());
    }

    #[test]
    fn no_more_texts_are_kept_than_allowed() {
        let (mut state, mut texts) = started("a fox");
        for n in 0..2 * KEPT {
            state.apply(&prompts(&n.to_string()), &mut |text| texts.encode(text)).unwrap();
        }
        assert_eq!(state.encoded.0.len(), KEPT);
    }
}
