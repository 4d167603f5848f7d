//! Calls as CUDA graphs: what the host prepares for the device in one call, thousands of launches and the collectives between
//! them, is captured once and launched as a whole by the calls after it.
//!
//! A call can be a graph when all that it does follows from its [`Shape`], but for what is copied to places that the graph
//! reads: so it is where the KV cache is made anew by each call, as Krea does, and where a stream rolls on (Self-Forcing) once
//! its window is full, for then each chunk moves the cache alike and only the rotations are others. The second call of one
//! shape captures. There are two graphs, with the copy of the other steps' noise between them: the host draws it while the
//! device works on the first.

use std::ptr;

use collectives::{CollectiveError, Recorder};
use device::Graph;
use tch::{Kind, Tensor};
use torch_extra::{Capture, Pool};

use super::{ChunkArgs, GenerateError, Generator, Graphs, PhaseClock};
use crate::dit::{CausalDit, DitError, KvCache, KvPlan, TextCache, Tp};

/// What a call's work follows from, but for the values of its tensors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    latents: Vec<i64>,
    history: History,
    steps: Vec<u32>,
    bias: f64,
}

/// What a call finds in the KV cache.
#[derive(Clone, Debug, PartialEq)]
enum History {
    /// What it puts there itself, from context of this size; its own frames are at `start_frame`.
    Recomputed { context: Vec<i64>, start_frame: i64 },
    /// What the chunks before left: where it goes on, in whatever part of the stream.
    Rolling(KvPlan),
}

/// A captured call of one slot. It reads and writes the slot's caches where they are.
#[derive(Debug)]
pub(super) struct CallGraph {
    /// Recompute pass and first step.
    first: Graph,
    rest: Graph,
    latents_in: Tensor,
    context: Option<Tensor>,
    renoise: Vec<Tensor>,
    output: Tensor,
    /// Of the KV cache after the call that was captured.
    ends: (i64, i64),
    rolling: Option<Rolling>,
    /// What the graph reads and others may let go of.
    _held: Vec<Tensor>,
}

/// What is another one with each chunk of a stream that rolls on.
#[derive(Debug)]
struct Rolling {
    /// Of the chunk's tokens.
    rotations: Tensor,
    /// Frames, rows and columns of tokens.
    grid: (i64, i64, i64),
    /// By how much a call moves the end of the stream, in tokens.
    advance: i64,
}

impl Generator {
    /// `None` for calls that cannot be a graph.
    pub(super) fn shape(&self, args: &ChunkArgs, kv: &KvCache, tp: &Tp) -> Option<Shape> {
        if self.graphs != Graphs::On || !tp.collective.records() {
            return None;
        }
        let size = args.latents_in.size();
        let start_frame = self.start_frame(args.current_start_frame);
        let history = match args.context_frames {
            Some(context) => History::Recomputed { context: context.size(), start_frame },
            // The first chunk of a history that is recomputed: no other is like it.
            None if self.config.family.recomputes() => return None,
            None => {
                let per_frame = self.config.dit.tokens_per_frame(size[3], size[4]);
                let plan = kv.plan(start_frame * per_frame, size[1] * per_frame).ok()?;
                History::Rolling(plan.in_any_stream())
            }
        };
        let (steps, bias) = (args.denoising_steps.to_vec(), args.kv_cache_attention_bias);
        Some(Shape { latents: size, history, steps, bias })
    }

    /// Captures the call, or, where that fails and the group is well, does without graphs from here on.
    pub(super) fn try_capture(
        &mut self,
        args: &ChunkArgs,
        kv: &mut KvCache,
        text: &TextCache,
        tp: &Tp,
    ) -> Result<Option<CallGraph>, GenerateError> {
        match self.capture(args, kv, text, tp) {
            Ok(graph) => Ok(Some(graph)),
            Err(error @ (GenerateError::Collective(_) | GenerateError::Dit(DitError::Collective(_)))) => {
                Err(error)
            }
            Err(error) => {
                self.without_graphs(&format!("a capture failed: {error}"));
                Ok(None)
            }
        }
    }

    /// All graphs share their memory: no two run at a time, and what one leaves is copied away at once.
    fn capture(
        &mut self,
        args: &ChunkArgs,
        kv: &mut KvCache,
        text: &TextCache,
        tp: &Tp,
    ) -> Result<CallGraph, GenerateError> {
        let pool = self.pool.take().map_or_else(|| Pool::new(self.dit.options().1), Ok)?;
        let ends = kv.ends();
        let captured = self.capture_in(&pool, args, kv, text, tp);
        // Captured is not done.
        kv.set_ends(ends);
        self.pool = Some(pool);
        captured
    }

    fn capture_in(
        &mut self,
        pool: &Pool,
        args: &ChunkArgs,
        kv: &mut KvCache,
        text: &TextCache,
        tp: &Tp,
    ) -> Result<CallGraph, GenerateError> {
        let device = self.dit.options().1;
        let place = |like: &Tensor| Tensor::f_zeros(like.size(), (Kind::Float, device));
        let (latents_in, context) = (place(args.latents_in)?, args.context_frames.map(place).transpose()?);
        let steps = self.steps(args);
        let renoise =
            (1..steps.timesteps.len()).map(|_| place(args.latents_in)).collect::<Result<Vec<_>, _>>()?;

        let size = args.latents_in.size();
        let [_, ph, pw] = self.config.dit.patch_size;
        let (rows, columns) = (size[3] / ph, size[4] / pw);
        let (start_frame, before) = (self.start_frame(args.current_start_frame), kv.ends());
        let timesteps: Vec<f64> = steps.timesteps.iter().copied().chain([0.0]).collect();
        let mut held = self.dit.shared(&timesteps)?;
        // Rotations are made for this graph alone: where a stream rolls on they are overwritten.
        self.dit.forget_rotations();
        let rotations = self.dit.rotations(start_frame, (size[1], rows, columns))?;
        if let Some(context) = &context {
            held.push(self.dit.rotations(0, (context.size()[1], rows, columns))?);
        }

        let recorder = Recorder(tp.collective);
        let tp = Tp { collective: &recorder, deadline: tp.deadline };
        let capture = Capture::enter(pool)?;
        let stream = capture.stream().0;
        let first = || {
            if let Some(context) = &context {
                self.recompute(context, kv, text, &tp)?;
            }
            self.denoise(&steps, 0, &latents_in, kv, text, &tp)
        };
        // SAFETY: the stream is libtorch's and stays. Inputs, weights, caches and what is held live as long as the graph's slot,
        // which lets go of the graph before it lets go of a cache; all else is in the pool.
        let (first, clean) = unsafe { Graph::capture::<_, GenerateError>(stream, first) }?;
        let rest = || {
            let latents = self.other_steps(&steps, clean, &renoise, kv, text, &tp)?;
            self.commit(&steps, &latents, kv, text, &tp)?;
            Ok(latents)
        };
        // SAFETY: as above; `clean` is in the pool as well.
        let (rest, output) = unsafe { Graph::capture::<_, GenerateError>(stream, rest) }?;
        drop(capture);
        self.dit.forget_rotations();
        let ends = kv.ends();
        let rolling = if context.is_some() {
            held.push(rotations);
            None
        } else {
            Some(Rolling { rotations, grid: (size[1], rows, columns), advance: ends.1 - before.1 })
        };
        Ok(CallGraph { first, rest, latents_in, context, renoise, output, ends, rolling, _held: held })
    }
}

impl CallGraph {
    /// The call with these values: latents as [`super::ChunkOutput`] has them.
    pub(super) fn run(
        &mut self,
        dit: &mut CausalDit,
        args: &ChunkArgs,
        renoise: impl FnOnce() -> Result<Vec<Tensor>, GenerateError>,
        kv: &mut KvCache,
        tp: &Tp,
        clock: &mut PhaseClock,
    ) -> Result<Tensor, GenerateError> {
        self.latents_in.f_copy_(args.latents_in)?;
        if let (Some(place), Some(context)) = (&mut self.context, args.context_frames) {
            place.f_copy_(context)?;
        }
        if let Some(rolling) = &mut self.rolling {
            rolling.rotations.f_copy_(&dit.rotations(args.current_start_frame, rolling.grid)?)?;
        }
        launch(&self.first, tp)?;
        clock.mark("first_graph");
        for (place, noise) in self.renoise.iter_mut().zip(renoise()?) {
            // The host does not wait for a copy out of pinned memory.
            let noise = torch_extra::pinned(&noise)?;
            let noise = noise.f_to_device_(place.device(), Kind::Float, true, false)?;
            place.f_copy_(&noise.f_view_as(&*place)?)?;
        }
        launch(&self.rest, tp)?;
        clock.mark("second_graph");
        kv.set_ends(match &self.rolling {
            Some(rolling) => (self.ends.0, kv.global_end() + rolling.advance),
            None => self.ends,
        });
        Ok(self.output.f_detach_copy()?)
    }
}

fn launch(graph: &Graph, tp: &Tp) -> Result<(), CollectiveError> {
    tp.collective.replay(tp.deadline, &mut || {
        // SAFETY: the default stream, torch's current one; what the graph reads and writes is where it was, see the capture.
        unsafe { graph.launch(ptr::null_mut()) }.map_err(CollectiveError::from)
    })
}
