//! Calls as CUDA graphs: what the host prepares for the device in one call, thousands of launches and the collectives between
//! them, is captured once and launched as a whole by the calls after it.
//!
//! A call can be a graph when all that it does follows from its [`Shape`]: so it is where the KV cache is made anew by each call,
//! as Krea does. Where a stream rolls on (Self-Forcing), places and rotations change with every chunk. The second call of
//! one shape captures; what changes from call to call is copied to places that the graph reads. There are two graphs, with
//! the copy of the other steps' noise between them: the host draws it while the device works on the first.

use std::ptr;

use collectives::{CollectiveError, Recorder};
use device::Graph;
use tch::{Kind, Tensor};
use torch_extra::{Capture, Pool};

use super::{ChunkArgs, GenerateError, Generator, Graphs, PhaseClock};
use crate::dit::{DitError, KvCache, TextCache, Tp};

/// What a call's work follows from, but for the values of its tensors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    latents: Vec<i64>,
    context: Vec<i64>,
    /// In the KV cache and the rotary embedding.
    start_frame: i64,
    steps: Vec<u32>,
    bias: f64,
}

/// A captured call of one slot. It reads and writes the slot's caches where they are.
#[derive(Debug)]
pub(super) struct CallGraph {
    /// Recompute pass and first step.
    first: Graph,
    rest: Graph,
    latents_in: Tensor,
    context: Tensor,
    renoise: Vec<Tensor>,
    output: Tensor,
    /// Of the KV cache after the call.
    ends: (i64, i64),
    /// What the graph reads and others may let go of.
    _held: Vec<Tensor>,
}

impl Generator {
    /// `None` for calls that cannot be a graph.
    pub(super) fn shape(&self, args: &ChunkArgs, tp: &Tp) -> Option<Shape> {
        let (context, Graphs::On) = (args.context_frames?, &self.graphs) else { return None };
        if !tp.collective.records() || self.config.family.has_clean_pass() {
            return None;
        }
        Some(Shape {
            latents: args.latents_in.size(),
            context: context.size(),
            start_frame: self.start_frame(args.current_start_frame),
            steps: args.denoising_steps.to_vec(),
            bias: args.kv_cache_attention_bias,
        })
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
                self.graphs = Graphs::Off { because: format!("a capture failed: {error}") };
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
        let captured = self.capture_in(&pool, args, kv, text, tp);
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
        let Some(context) = args.context_frames else {
            return Err(GenerateError::Argument { name: "context_frames", what: "none".to_owned() });
        };
        let device = self.dit.options().1;
        let place = |like: &Tensor| Tensor::f_zeros(like.size(), (Kind::Float, device));
        let (latents_in, context) = (place(args.latents_in)?, place(context)?);
        let steps = self.steps(args);
        let renoise =
            (1..steps.timesteps.len()).map(|_| place(args.latents_in)).collect::<Result<Vec<_>, _>>()?;

        let size = args.latents_in.size();
        let [_, ph, pw] = self.config.dit.patch_size;
        let grids = [(0, context.size()[1]), (self.start_frame(args.current_start_frame), size[1])];
        let timesteps: Vec<f64> = steps.timesteps.iter().copied().chain([0.0]).collect();
        let held = self.dit.shared(&grids, (size[3] / ph, size[4] / pw), &timesteps)?;

        let recorder = Recorder(tp.collective);
        let tp = Tp { collective: &recorder, deadline: tp.deadline };
        let capture = Capture::enter(pool)?;
        let stream = capture.stream().0;
        let first = || {
            self.recompute(&context, kv, text, &tp)?;
            self.denoise(&steps, 0, &latents_in, kv, text, &tp)
        };
        // SAFETY: the stream is libtorch's and stays. Inputs, weights, caches and what is held live as long as the graph's slot,
        // which lets go of the graph before it lets go of a cache; all else is in the pool.
        let (first, clean) = unsafe { Graph::capture::<_, GenerateError>(stream, first) }?;
        let rest = || self.other_steps(&steps, clean, &renoise, kv, text, &tp);
        // SAFETY: as above; `clean` is in the pool as well.
        let (rest, output) = unsafe { Graph::capture::<_, GenerateError>(stream, rest) }?;
        drop(capture);
        let ends = kv.ends();
        Ok(CallGraph { first, rest, latents_in, context, renoise, output, ends, _held: held })
    }
}

impl CallGraph {
    /// The call with these values: latents as [`super::ChunkOutput`] has them.
    pub(super) fn run(
        &mut self,
        args: &ChunkArgs,
        renoise: impl FnOnce() -> Result<Vec<Tensor>, GenerateError>,
        kv: &mut KvCache,
        tp: &Tp,
        clock: &mut PhaseClock,
    ) -> Result<Tensor, GenerateError> {
        self.latents_in.f_copy_(args.latents_in)?;
        if let Some(context) = args.context_frames {
            self.context.f_copy_(context)?;
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
        kv.set_ends(self.ends);
        Ok(self.output.f_detach_copy()?)
    }
}

fn launch(graph: &Graph, tp: &Tp) -> Result<(), CollectiveError> {
    tp.collective.replay(tp.deadline, &mut || {
        // SAFETY: the default stream, torch's current one; what the graph reads and writes is where it was, see the capture.
        unsafe { graph.launch(ptr::null_mut()) }.map_err(CollectiveError::from)
    })
}
