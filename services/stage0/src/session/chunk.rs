//! The stages of one chunk: started, arrived, decoding.

use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::envelope::ResultV1;
use contract::error::{Error, Reason};
use contract::event::{ChunkReport, ChunkTimings};
use contract::ids::Digest;
use contract::tensor::TensorKey;
use tch::Tensor;

use super::{PromptState, Session, Stop};
use crate::context::context_frames;
use crate::envelope::{self, Asking, Cargo, EmbeddingCargo, Tensors};
use crate::history::{FRAMES_PER_LATENT, Head, Position};
use crate::media::Tag;
use crate::mesh_client::{Done, Job};
use crate::pictures;
use crate::prompt::Conditioning;
use crate::queue::Frame;

/// A chunk that the mesh makes.
pub(super) struct Started {
    position: Position,
    tensors: Tensors,
    new_conditioning: bool,
    transition_active: bool,
    at: Instant,
    /// When the newest update in it came.
    parameter_arrived: Option<Instant>,
    timings: ChunkTimings,
}

impl Started {
    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// Whether it is the first of a history.
    pub(super) fn is_cut(&self) -> bool {
        self.position.current_start_frame == 0
    }

    pub(super) fn transition_active(&self) -> bool {
        self.transition_active
    }

    pub(super) fn arrived(mut self, done: Done) -> Arrived {
        self.timings.link_us = micros(done.link);
        self.timings.call_us = micros(done.call);
        self.timings.mesh = done.result.timings;
        Arrived { started: self, latents: done.latents, result: *done.result, at: Instant::now() }
    }
}

/// A chunk whose latents have come.
pub(super) struct Arrived {
    started: Started,
    /// `[1, frames, C, h, w]`
    latents: Tensor,
    result: ResultV1,
    at: Instant,
}

impl Arrived {
    fn frames(&self) -> u32 {
        let first = if self.started.is_cut() { index_u64(FRAMES_PER_LATENT) - 1 } else { 0 };
        u32::try_from(index_u64(FRAMES_PER_LATENT) * self.latents.size()[1] - first).unwrap_or(0)
    }
}

/// A chunk whose head is decoded; the rest follows.
pub(super) struct Decoding {
    chunk: Arrived,
    /// Pixels `[1, F, 3, H, W]` of the latents decoded so far, not yet on their way.
    head: Option<Tensor>,
    decoded_latents: i64,
    /// Of the next chunk.
    context: Option<Tensor>,
    head_took: Duration,
    complete: bool,
}

impl Decoding {
    /// Context frames of the next chunk, `[1, context_frames, C, h, w]`.
    pub(super) fn context(&self) -> Option<&Tensor> {
        self.context.as_ref()
    }

    /// `[1, frames, C, h, w]`
    pub(super) fn latents(&self) -> &Tensor {
        &self.chunk.latents
    }
}

impl Session {
    /// Decodes what the next call needs of this chunk, and no more.
    pub(super) fn decode_head(&mut self, chunk: Arrived) -> Result<Decoding, Stop> {
        let started = Instant::now();
        self.rate.chunk(chunk.frames(), chunk.at.saturating_duration_since(chunk.started.at), chunk.at);
        let next = self.history.next();
        let (mut head, mut decoded_latents) = (None, 0);
        let head_latent = match next.context {
            None => None,
            Some(Head::FirstLatent) => Some(chunk.latents.narrow(1, 0, 1)),
            Some(Head::Reencoded { latent, frame }) => {
                decoded_latents = index(latent) + 1;
                let latents = chunk.latents.narrow(1, 0, decoded_latents);
                let pixels = self.parts.studio.decode(&mut self.decoder, &latents);
                // Every latent but the first of a history gives as many frames.
                let at = index(latent) * index_u64(FRAMES_PER_LATENT) + index(frame);
                let encoded = self.parts.studio.encode_frame(&pixels.narrow(1, at, 1));
                head = Some(pixels);
                Some(encoded)
            }
        };
        let frames = i64::from(self.parts.model.context_frames);
        let context = head_latent
            .map(|head| context_frames(&head, &chunk.latents, frames))
            .transpose()
            .map_err(|e| torch("the context frames cannot be built", &e))?;
        let head_took = started.elapsed();
        Ok(Decoding { chunk, head, decoded_latents, context, head_took, complete: false })
    }

    /// Takes what waits, and sends the call for the next chunk. `context`: its context frames, if its history has any.
    pub(super) fn start(&mut self, context: Option<&Tensor>) -> Result<Started, Stop> {
        let at = Instant::now();
        self.parts.mailbox.check(at)?;
        let drained = self.parts.mailbox.drain();
        self.update = drained.update;
        let mut changes = self.settings.apply(&drained.parameters);
        let studio = self.parts.studio.clone();
        let mut encode = |text: &str| studio.encode_text(text);
        match &mut self.prompts {
            Some(prompts) => match prompts.apply(&drained.parameters, &mut encode) {
                Ok(changed) => changes.changed.merge(changed),
                Err(error) => self.parts.events.error(&error),
            },
            none => {
                let mut prompts = PromptState::new(&drained.parameters, &mut encode)?;
                prompts.apply(&drained.parameters, &mut encode)?;
                *none = Some(prompts);
                changes.changed = drained.parameters.clone();
            }
        }
        let conditioning = match &mut self.prompts {
            Some(prompts) => prompts.advance(),
            None => return Err(Error::new(Reason::Internal, "a chunk without prompts").into()),
        };
        let embedding = self.carried(&conditioning)?;
        let text_us = micros(at.elapsed());
        if changes.cut && self.history.next().current_start_frame > 0 {
            self.history.restart();
        }
        self.heed_lease();
        let position = self.history.next();
        if position.current_start_frame == 0 {
            self.decoder.clear();
            self.parts.output.flush_before(position.cache_epoch);
        }
        let tensors = self.tensors(&position, embedding, context)?;
        let mut started = Started {
            position,
            tensors,
            new_conditioning: conditioning.changed,
            transition_active: conditioning.transition_active,
            at,
            parameter_arrived: drained.arrived,
            timings: ChunkTimings { text_us, ..ChunkTimings::default() },
        };
        self.submit(&mut started)?;
        started.timings.envelope_us = micros(at.elapsed()).saturating_sub(text_us);
        self.applied(&started, drained.update, changes.changed, drained.arrived.is_some());
        Ok(started)
    }

    /// The embedding as it travels; that of the chunk before, if nothing has changed.
    fn carried(&mut self, conditioning: &Conditioning) -> Result<EmbeddingCargo, Error> {
        let embedding = match self.conditioning.take() {
            Some(before) if !conditioning.changed => before,
            _ => EmbeddingCargo::new(&conditioning.embedding, self.parts.model.dtype)?,
        };
        self.conditioning = Some(embedding.share());
        Ok(embedding)
    }

    fn tensors(
        &mut self,
        position: &Position,
        conditioning: EmbeddingCargo,
        context: Option<&Tensor>,
    ) -> Result<Tensors, Stop> {
        let dtype = self.parts.model.dtype;
        let context = position.context.and(context);
        let context =
            context.map(|context| Cargo::new(TensorKey::ContextFrames, context, dtype)).transpose()?;
        let latents_in = self.noise.take(self.settings.seed, position.current_start_frame)?;
        Ok(Tensors { latents_in, conditioning, context })
    }

    /// Draws the noise of the chunk after `started`, while the mesh is at work.
    pub(super) fn draw_ahead(&mut self, started: &Started) -> Result<(), Stop> {
        let next = started.position.current_start_frame + u64::from(self.parts.model.frames_per_chunk);
        Ok(self.noise.draw_ahead(self.settings.seed, next)?)
    }

    /// Sends the same chunk again, in the cache epoch that holds now.
    pub(super) fn resend(&mut self, started: &mut Started) -> Result<(), Stop> {
        self.heed_lease();
        started.position = self.history.next();
        started.at = Instant::now();
        self.submit(started)
    }

    fn submit(&mut self, started: &mut Started) -> Result<(), Stop> {
        let asking = Asking {
            session: self.parts.stream.session,
            slot: self.parts.slot,
            size: self.parts.stream.size,
            position: &started.position,
            settings: &self.settings,
            new_conditioning: started.new_conditioning,
        };
        let infer = envelope::infer(&self.parts.model, asking, &started.tensors)?;
        let tensors = started.tensors.iter().map(|(key, tensor)| (key, tensor.shallow_clone())).collect();
        let mailbox = Arc::clone(&self.parts.mailbox);
        let asked = mailbox.ask();
        self.parts.mesh.submit(Job { infer, tensors, mailbox, asked });
        Ok(())
    }

    /// Decodes what is left of a chunk, latent by latent, and hands its frames to the output. `next_started`: when the
    /// chunk after it began.
    pub(super) fn decode_rest(&mut self, decoding: &mut Decoding, next_started: Instant) -> Result<(), Stop> {
        if std::mem::replace(&mut decoding.complete, true) {
            return Ok(());
        }
        let (latents, total) = (decoding.chunk.latents.size()[1], decoding.chunk.frames());
        self.parts.output.set_fps(self.rate.fps());
        let digest = envelope::digest(&decoding.chunk.latents)?;
        let mut rest_took = Duration::ZERO;
        let mut frame = 0;
        let mut pixels = decoding.head.take();
        for latent in decoding.decoded_latents..=latents {
            if let Some(pixels) = pixels.take() {
                let pictures =
                    pictures::convert(&pixels).map_err(|e| torch("a frame cannot be converted", &e))?;
                for picture in pictures {
                    let last = frame + 1 == total;
                    self.push(
                        &decoding.chunk,
                        picture,
                        frame,
                        last.then(|| {
                            let timings = ChunkTimings {
                                decode_head_us: micros(decoding.head_took),
                                decode_rest_us: micros(rest_took),
                                chunk_us: micros(
                                    next_started.saturating_duration_since(decoding.chunk.started.at),
                                ),
                                ..decoding.chunk.started.timings
                            };
                            (timings, total, digest.clone())
                        }),
                    );
                    frame += 1;
                }
            }
            if latent < latents {
                let decode = Instant::now();
                let next = decoding.chunk.latents.narrow(1, latent, 1);
                pixels = Some(self.parts.studio.decode(&mut self.decoder, &next));
                rest_took += decode.elapsed();
            }
        }
        self.parts.shown.chunk(&decoding.chunk.started.position, self.rate.fps());
        Ok(())
    }

    fn push(
        &self,
        chunk: &Arrived,
        picture: video::I420,
        frame: u32,
        report: Option<(ChunkTimings, u32, Digest)>,
    ) {
        let position = &chunk.started.position;
        let tag = Tag {
            cache_epoch: position.cache_epoch,
            chunk_index: position.chunk_index,
            frame: u16::try_from(frame).unwrap_or(u16::MAX),
        };
        let report = report.map(|(timings, frames, latents)| {
            Box::new(ChunkReport {
                chunk_index: position.chunk_index,
                cache_epoch: position.cache_epoch,
                mesh_epoch: chunk.result.mesh_epoch,
                frames,
                fps: self.rate.fps() as f32,
                dropped_frames: 0,
                latents,
                timings,
            })
        });
        let parameter_arrived = chunk.started.parameter_arrived.filter(|_| frame == 0);
        self.parts.output.push(Frame { picture: Arc::new(picture), tag, parameter_arrived, report });
    }
}

pub(super) fn torch(what: &str, error: &tch::TchError) -> Error {
    Error::new(Reason::Internal, what).detail(error.to_string())
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

fn index(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn index_u64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
