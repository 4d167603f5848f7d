//! From one life of a session to the next: what is kept after each chunk, and how it is gone on from.

use contract::continuation::{CONTINUATION_VERSION, ContinuationV1, StoredFrames};
use contract::error::{Error, Reason};
use contract::event::Event;
use contract::model::ModelInfo;
use tch::Tensor;
use tracing::{info, warn};
use wan::vae::DecoderStream;

use super::chunk::Decoding;
use super::{Parts, PromptState, Session};
use crate::context::context_frames;
use crate::history::{History, Position};
use crate::media::Stream;
use crate::settings::Settings;
use crate::stored;
use crate::studio::Studio;

/// What went before this life of a session.
#[derive(Debug)]
pub(crate) enum Past {
    /// Nothing: it is the first.
    None,
    /// A life that left no state.
    Lost,
    State(Box<ContinuationV1>),
}

/// What a chunk loop begins with.
pub(super) struct Beginning {
    pub history: History,
    pub settings: Settings,
    pub prompts: Option<PromptState>,
    pub decoder: DecoderStream,
    /// Context frames of the first call.
    pub context: Option<Tensor>,
}

impl Beginning {
    fn new(model: &ModelInfo) -> Self {
        Self {
            history: History::new(model),
            settings: Settings::new(model),
            prompts: None,
            decoder: DecoderStream::new(),
            context: None,
        }
    }

    /// Goes on from `parts.past`, and says where.
    pub(super) fn of(parts: &Parts) -> Self {
        let restored = match &parts.past {
            Past::None => return Self::new(&parts.model),
            Past::Lost => None,
            Past::State(state) => match Self::restore(&parts.stream, &parts.model, &parts.studio, state) {
                Ok(restored) => {
                    // It is this life's own until there is a newer one: a session that begins paused may make none for long.
                    let incarnation = parts.stream.incarnation;
                    parts.keeper.keep(ContinuationV1 { incarnation, ..(**state).clone() });
                    Some(restored)
                }
                Err(error) => {
                    warn!(%error, detail = error.detail, "the stored state cannot be used");
                    None
                }
            },
        };
        let beginning = restored.unwrap_or_else(|| Self::new(&parts.model));
        let (next, restored) = (beginning.history.next(), beginning.context.is_some());
        info!(chunk = %next.chunk_index, restored, "the session goes on in another life");
        parts.events.send(Event::Continued {
            chunk_index: next.chunk_index,
            cache_epoch: next.cache_epoch,
            restored,
        });
        beginning
    }

    /// # Errors
    /// The state is of another session, model or size, or something in it cannot be used.
    fn restore(
        stream: &Stream,
        model: &ModelInfo,
        studio: &Studio,
        state: &ContinuationV1,
    ) -> Result<Self, Error> {
        let same =
            (state.session, state.size, &state.model) == (stream.session, stream.size, &model.fingerprint);
        if !same {
            let text =
                format!("it is of session {}, model {}, size {}", state.session, state.model, state.size);
            return Err(Error::new(Reason::BadField, text));
        }
        state.settings.validate()?;
        let mut beginning = Self::new(model);
        beginning.settings.apply(&state.settings);
        let mut encode = |text: &str| studio.encode_text(text);
        beginning.prompts = Some(PromptState::restore(&state.conditioning, &mut encode)?);
        // Whatever cannot be gone on from is a history of its own, in an epoch of its own.
        beginning.history = History::resume(model, state.cache_epoch, 0);
        if let Some(frames) = &state.frames
            && model.recompute
        {
            let shape = |frames| model.latent_shape(stream.size, frames);
            let head = stored::shaped(&frames.head, &shape(1))?;
            let latents = stored::shaped(&frames.latents, &shape(model.frames_per_chunk))?;
            let context = context_frames(&head, &latents, i64::from(model.context_frames)).map_err(|e| {
                Error::new(Reason::Internal, "the context frames cannot be built").detail(e.to_string())
            })?;
            // Their frames have been shown; what the decoder remembers of them is what the next ones build on.
            drop(studio.decode(&mut beginning.decoder, &latents));
            beginning.context = Some(context);
            beginning.history = History::resume(model, state.cache_epoch, state.current_start_frame);
        }
        Ok(beginning)
    }
}

/// Where a session stands between two chunks.
struct Standing<'a> {
    stream: &'a Stream,
    model: &'a ModelInfo,
    /// Of the chunk that comes next.
    next: Position,
    settings: &'a Settings,
    prompts: &'a PromptState,
    update: u64,
    /// Of the next chunk, and the latents of the one before it.
    context: Option<&'a Tensor>,
    latents: &'a Tensor,
}

impl Standing<'_> {
    /// # Errors
    /// A tensor cannot be read.
    fn state(&self) -> Result<ContinuationV1, Error> {
        let frames = self.context.map(|context| -> Result<_, Error> {
            let head = stored::tensor(&context.narrow(1, 0, 1))?;
            Ok(StoredFrames { head, latents: stored::tensor(self.latents)? })
        });
        Ok(ContinuationV1 {
            version: CONTINUATION_VERSION,
            session: self.stream.session,
            incarnation: self.stream.incarnation,
            model: self.model.fingerprint.clone(),
            size: self.stream.size,
            cache_epoch: self.next.cache_epoch,
            current_start_frame: self.next.current_start_frame,
            update: self.update,
            settings: self.settings.stored(),
            conditioning: self.prompts.stored()?,
            frames: frames.transpose()?,
        })
    }
}

impl Session {
    /// Keeps what another life needs to make the chunk after `decoding`. Never waits; without it the session still runs.
    pub(super) fn keep(&self, decoding: &Decoding) {
        let Some(prompts) = &self.prompts else { return };
        let standing = Standing {
            stream: &self.parts.stream,
            model: &self.parts.model,
            next: self.history.next(),
            settings: &self.settings,
            prompts,
            update: self.update,
            context: decoding.context(),
            latents: decoding.latents(),
        };
        match standing.state() {
            Ok(state) => self.parts.keeper.keep(state),
            Err(error) => warn!(%error, detail = error.detail, "the session's state cannot be kept"),
        }
    }
}

#[cfg(test)]
mod tests {
    use contract::ids::{CacheEpoch, Incarnation, SessionId};
    use contract::media::VideoCodec;
    use contract::params::{Parameters, Prompt};
    use engine::settings::{DeviceSection, ModelSection};
    use tch::{Device, Kind};

    use super::*;
    use crate::models::{self, Loaded};

    struct Fixture {
        stream: Stream,
        model: ModelInfo,
        studio: Studio,
        settings: Settings,
        prompts: PromptState,
        history: History,
        /// The last chunk, and the context after it.
        latents: Tensor,
        context: Tensor,
    }

    /// A session that has made three chunks with settings of its own.
    fn fixture() -> Fixture {
        let Loaded { model, studio, .. } =
            models::load(&ModelSection::default(), &DeviceSection::default(), 1).unwrap();
        let size = model.default_size().unwrap();
        let (session, incarnation) = (SessionId::random(), Incarnation(1));
        let stream = Stream { session, incarnation, codec: VideoCodec::Vp8, size };
        let update = Parameters {
            prompts: Some(vec![Prompt { text: "a fox".to_owned(), weight: 1.0 }]),
            base_seed: Some(9),
            denoising_step_list: Some(vec![900, 100]),
            ..Parameters::default()
        };
        let mut settings = Settings::new(&model);
        settings.apply(&update);
        let mut history = History::new(&model);
        (0..3).for_each(|_| history.completed());
        let noise = |frames| Tensor::randn(model.latent_shape(size, frames), (Kind::Float, Device::Cpu));
        let (latents, head) = (noise(model.frames_per_chunk), noise(1));
        let context = context_frames(&head, &latents, i64::from(model.context_frames)).unwrap();
        let prompts = PromptState::new(&update, &mut |text| studio.encode_text(text)).unwrap();
        Fixture { stream, model, studio, settings, prompts, history, latents, context }
    }

    impl Fixture {
        fn state(&self) -> ContinuationV1 {
            let standing = Standing {
                stream: &self.stream,
                model: &self.model,
                next: self.history.next(),
                settings: &self.settings,
                prompts: &self.prompts,
                update: 4,
                context: self.history.next().context.map(|_| &self.context),
                latents: &self.latents,
            };
            ContinuationV1::decode(&standing.state().unwrap().encode().unwrap()).unwrap()
        }

        fn restore(&self, state: &ContinuationV1) -> Result<Beginning, Error> {
            Beginning::restore(&self.stream, &self.model, &self.studio, state)
        }
    }

    #[test]
    fn the_next_call_after_a_restore_is_the_one_that_would_have_been_made() {
        let mut fixture = fixture();
        let before = fixture.history.next();
        let mut restored = fixture.restore(&fixture.state()).unwrap();
        let next = restored.history.next();
        assert_eq!(
            (next.chunk_index, next.current_start_frame, next.context),
            (before.chunk_index, before.current_start_frame, before.context)
        );
        assert!(next.cache_epoch > before.cache_epoch && next.init_cache);
        assert!(restored.context.unwrap().equal(&fixture.context));
        assert_eq!(restored.settings, fixture.settings);
        let conditioning = restored.prompts.as_mut().unwrap().advance();
        assert!(conditioning.embedding.equal(&fixture.prompts.advance().embedding));
        // The decoder is under way: whatever comes next has four frames for each latent.
        let frames = fixture.studio.decode(&mut restored.decoder, &fixture.latents.narrow(1, 0, 1));
        assert_eq!(frames.size()[1], 4);
    }

    #[test]
    fn a_model_that_keeps_its_cache_keeps_its_settings_and_begins_another_history() {
        let mut fixture = fixture();
        fixture.model.recompute = false;
        fixture.history = History::new(&fixture.model);
        (0..3).for_each(|_| fixture.history.completed());
        let state = fixture.state();
        assert_eq!(state.frames, None);
        let restored = fixture.restore(&state).unwrap();
        let next = restored.history.next();
        assert!(next.current_start_frame == 0 && next.cache_epoch > CacheEpoch(1));
        assert!(restored.context.is_none() && restored.decoder.is_new());
        assert_eq!(restored.settings, fixture.settings);
    }

    #[test]
    fn a_state_of_another_session_model_or_size_is_not_used() {
        let fixture = fixture();
        type Change = fn(&mut ContinuationV1);
        let changes: [Change; 4] = [
            |state| state.session = SessionId::random(),
            |state| state.model.push('x'),
            |state| state.size.width += 8,
            |state| state.frames.as_mut().unwrap().latents.shape.swap(1, 2),
        ];
        for change in changes {
            let mut state = fixture.state();
            change(&mut state);
            let error = fixture.restore(&state).err().unwrap();
            assert!(matches!(error.reason, Reason::BadField | Reason::BadShape), "{error}");
        }
    }
}
