//! One chunk of video latents: the denoising loop over the transformer, for both checkpoint families.
//!
//! This is the one place that an engine maps a call to. Every rank runs it with the same arguments; nothing in it depends
//! on the rank, the time of day or the environment, so the ranks stay in lockstep.

use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use torch_extra::Pool;

use crate::config::{Family, ModelConfig};
use crate::dit::{Attend, CausalDit, DitError, ForwardCount, KvCache, KvCacheSpec, TextCache};
use crate::noise::BlockNoise;
use crate::scheduler::FlowScheduler;

mod check;
mod graph;
#[cfg(test)]
mod tests;

use self::graph::{CallGraph, Shape};
pub use crate::dit::Tp;

/// What one chunk is made from; see the fields of the envelope for who decides them.
#[derive(Clone, Copy, Debug)]
pub struct ChunkArgs<'a> {
    /// Index of the chunk's first latent frame since the start of the history.
    pub current_start_frame: i64,
    /// Noise `[1, F, 16, h, w]`.
    pub latents_in: &'a Tensor,
    /// New embedded prompt `[1, L, D]`; `None` keeps the slot's.
    pub conditioning: Option<&'a Tensor>,
    /// Clean latents `[1, K, 16, h, w]` to rebuild the KV cache from; present exactly when it is rebuilt.
    pub context_frames: Option<&'a Tensor>,
    /// Strictly descending timesteps in 0..=1000, as a user states them.
    pub denoising_steps: &'a [u32],
    pub base_seed: u64,
    /// Weight of past frames in self-attention, in (0, 1].
    pub kv_cache_attention_bias: f64,
    /// Starts the slot's KV history over; its memory may change size.
    pub init_cache: bool,
    /// Starts the slot's KV history over, keeping its size.
    pub reset_kv_cache: bool,
    /// Computes the text keys again from the slot's prompt.
    pub reset_crossattn_cache: bool,
}

/// What one chunk gave.
#[derive(Debug)]
pub struct ChunkOutput {
    /// Clean latents `[1, F, 16, h, w]`, f32, on the model's device.
    pub latents: Tensor,
    /// Transformer forwards that were made, counted where they were made.
    pub generator_calls: ForwardCount,
    /// Frame index after the chunk.
    pub current_start_frame: i64,
    /// Host time of each phase.
    pub timings: Vec<(&'static str, Duration)>,
}

/// Why a chunk was not made. A refusal of an argument changed nothing; after any other error the slot is empty.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("slot {slot}: allowed: 0..{slots}")]
    Slot { slot: usize, slots: usize },
    #[error("{name}: {what}")]
    Argument { name: &'static str, what: String },
    #[error("slot {slot} holds a {held:?} latent history, got {found:?}; a change of size needs init_cache")]
    Size { slot: usize, held: (i64, i64), found: (i64, i64) },
    #[error("slot {slot} has no prompt yet and the call brings none")]
    NoPrompt { slot: usize },
    #[error(
        "world: the collective is rank {found_rank} of {found_world}, the weights rank {rank} of {world}"
    )]
    World { rank: u32, world: u32, found_rank: u32, found_world: u32 },
    #[error(transparent)]
    Dit(#[from] DitError),
    #[error("torch: {0}")]
    Torch(#[from] tch::TchError),
    #[error(transparent)]
    Extra(#[from] torch_extra::ExtraError),
    #[error(transparent)]
    Graph(#[from] device::DriverFailure),
    #[error(transparent)]
    Collective(#[from] collectives::CollectiveError),
}

/// What one stream keeps between chunks.
#[derive(Debug, Default)]
struct Slot {
    /// KV cache and the latent size (height, width) it is for.
    kv: Option<(KvCache, (i64, i64))>,
    prompt: Option<Tensor>,
    text: Option<TextCache>,
    /// Of the last call, if a graph could do such calls.
    shape: Option<Shape>,
    graph: Option<CallGraph>,
}

/// A slot whose caches are as a call asks for.
struct Prepared<'a> {
    kv: &'a mut KvCache,
    text: &'a TextCache,
    shape: &'a mut Option<Shape>,
    graph: &'a mut Option<CallGraph>,
}

/// Whether calls that repeat are captured as CUDA graphs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Graphs {
    On,
    Off { because: String },
}

/// The generator of one rank: transformer, schedule and the state of its slots.
#[derive(Debug)]
pub struct Generator {
    config: ModelConfig,
    scheduler: FlowScheduler,
    dit: CausalDit,
    slots: Vec<Slot>,
    graphs: Graphs,
    /// Memory of all graphs. Dropped after them.
    pool: Option<Pool>,
}

impl Generator {
    /// A generator with `slots` empty slots. On a GPU it captures graphs.
    pub fn new(config: &ModelConfig, dit: CausalDit, slots: usize) -> Self {
        let scheduler = FlowScheduler::new(config.shift);
        let slots = (0..slots).map(|_| Slot::default()).collect();
        let graphs = match dit.options().1 {
            Device::Cuda(_) => Graphs::On,
            other => Graphs::Off { because: format!("{other:?} has none") },
        };
        Self { config: config.clone(), scheduler, dit, slots, graphs, pool: None }
    }

    /// Captures no graphs any more, and drops those that there are.
    pub fn without_graphs(&mut self, because: &str) {
        self.graphs = Graphs::Off { because: because.to_owned() };
        self.drop_graphs();
        self.pool = None;
    }

    pub fn graphs(&self) -> &Graphs {
        &self.graphs
    }

    /// Drops the graphs that were captured; calls that repeat are captured anew, in the same memory. A collective that is part of
    /// them can only be freed afterwards.
    pub fn drop_graphs(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.graph = None);
    }

    /// Whether the calls of a slot are a graph's by now.
    pub fn has_graph(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(|slot| slot.graph.is_some())
    }

    /// Forwards that a chunk of `steps` denoising steps makes.
    pub fn expected_calls(config: &ModelConfig, steps: usize, recompute: bool) -> u32 {
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        steps.saturating_add(u32::from(recompute)).saturating_add(u32::from(config.family.has_clean_pass()))
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn dit(&self) -> &CausalDit {
        &self.dit
    }

    /// The KV cache of a slot that has one.
    pub fn kv_cache(&self, slot: usize) -> Option<&KvCache> {
        self.slots.get(slot)?.kv.as_ref().map(|(cache, _)| cache)
    }

    /// Forgets all that a slot holds and frees its memory.
    pub fn clear_slot(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = Slot::default();
        }
    }

    /// Makes one chunk. All ranks call it with the same arguments.
    ///
    /// # Errors
    /// An argument is refused before anything changes; after any other failure the slot is empty.
    pub fn generate(&mut self, slot: usize, args: &ChunkArgs, tp: &Tp) -> Result<ChunkOutput, GenerateError> {
        self.check(slot, args, tp)?;
        let size = args.latents_in.size();
        let shape = [size[1], size[2], size[3], size[4]];
        let (seed, frame, steps) = (args.base_seed, args.current_start_frame, args.denoising_steps.len());
        std::thread::scope(|scope| {
            // It takes the CPU as long as a pass takes a GPU, and the first pass does without.
            let drawing = scope.spawn(move || BlockNoise::draw(seed, frame, shape, steps));
            let drawn = || match drawing.join() {
                Ok(noise) => Ok(noise?.renoise),
                Err(panic) => std::panic::resume_unwind(panic),
            };
            self.generate_in_slot(slot, args, drawn, tp)
        })
    }

    /// As [`Self::generate`], with the noise `[F, C, H, W]` between the steps given instead of drawn from the seed.
    ///
    /// # Errors
    /// As for [`Self::generate`].
    pub fn generate_with_noise(
        &mut self,
        slot: usize,
        args: &ChunkArgs,
        renoise: &[Tensor],
        tp: &Tp,
    ) -> Result<ChunkOutput, GenerateError> {
        self.check(slot, args, tp)?;
        if renoise.len() + 1 != args.denoising_steps.len() {
            let what = format!("{} tensors for {} steps", renoise.len(), args.denoising_steps.len());
            return Err(GenerateError::Argument { name: "renoise", what });
        }
        let given = || Ok(renoise.iter().map(Tensor::shallow_clone).collect());
        self.generate_in_slot(slot, args, given, tp)
    }

    fn generate_in_slot(
        &mut self,
        slot: usize,
        args: &ChunkArgs,
        renoise: impl FnOnce() -> Result<Vec<Tensor>, GenerateError>,
        tp: &Tp,
    ) -> Result<ChunkOutput, GenerateError> {
        let _guard = tch::no_grad_guard();
        let mut state = std::mem::take(&mut self.slots[slot]);
        let output = self.run(slot, &mut state, args, renoise, tp)?;
        self.slots[slot] = state;
        Ok(output)
    }

    fn run(
        &mut self,
        index: usize,
        slot: &mut Slot,
        args: &ChunkArgs,
        renoise: impl FnOnce() -> Result<Vec<Tensor>, GenerateError>,
        tp: &Tp,
    ) -> Result<ChunkOutput, GenerateError> {
        let mut clock = PhaseClock::new();
        let calls_before = self.dit.forwards().so_far()?;
        let prepared = self.prepare(index, slot, args, tp)?;
        clock.mark("text_keys");
        let latents = self.run_prepared(prepared, args, renoise, tp, &mut clock)?;
        Ok(ChunkOutput {
            latents,
            generator_calls: self.dit.forwards().so_far()?.since(&calls_before)?,
            current_start_frame: args.current_start_frame + args.latents_in.size()[1],
            timings: clock.phases,
        })
    }

    /// The latents of a call, by a graph where it is a repetition.
    fn run_prepared(
        &mut self,
        prepared: Prepared,
        args: &ChunkArgs,
        renoise: impl FnOnce() -> Result<Vec<Tensor>, GenerateError>,
        tp: &Tp,
        clock: &mut PhaseClock,
    ) -> Result<Tensor, GenerateError> {
        let Prepared { kv, text, shape: last, graph } = prepared;
        let shape = self.shape(args, kv, tp);
        let repeats = shape.is_some() && *last == shape;
        *last = shape;
        if !repeats {
            *graph = None;
        } else if graph.is_none() {
            *graph = self.try_capture(args, kv, text, tp)?;
            clock.mark("capture");
        }
        if let Some(graph) = graph {
            return graph.run(&mut self.dit, args, renoise, kv, tp, clock);
        }
        let steps = self.steps(args);
        let latents = args.latents_in.f_to_device(self.dit.options().1)?.f_to_kind(Kind::Float)?;
        if let Some(context) = args.context_frames {
            self.recompute(context, kv, text, tp)?;
            clock.mark("recompute");
        }
        let clean = self.denoise(&steps, 0, &latents, kv, text, tp)?;
        // All at once: a copy to the device makes the host wait for it.
        let placed = |noise: &Tensor| noise.f_to_device(latents.device())?.f_view_as(args.latents_in);
        let renoise = renoise()?.iter().map(placed).collect::<Result<Vec<_>, _>>()?;
        let latents = self.other_steps(&steps, clean, &renoise, kv, text, tp)?;
        clock.mark("denoise");
        if self.commit(&steps, &latents, kv, text, tp)? {
            clock.mark("clean_pass");
        }
        Ok(latents)
    }

    fn steps(&self, args: &ChunkArgs) -> Steps {
        let attend = |bias| Attend::Cached {
            start_frame: self.start_frame(args.current_start_frame),
            bias,
            block_frames: self.config.num_frame_per_block,
        };
        Steps {
            timesteps: args.denoising_steps.iter().filter_map(|step| self.timestep(*step)).collect(),
            frames: to_len(args.latents_in.size()[1]),
            biased: attend(args.kv_cache_attention_bias),
            unbiased: attend(1.0),
        }
    }

    /// Starts the KV cache over from clean latents.
    fn recompute(
        &mut self,
        context: &Tensor,
        kv: &mut KvCache,
        text: &TextCache,
        tp: &Tp,
    ) -> Result<(), GenerateError> {
        let timesteps = vec![0.0; to_len(context.size()[1])];
        let attend = Attend::Recompute { block_frames: self.config.num_frame_per_block };
        Ok(self.dit.fill_cache(context, &timesteps, attend, kv, text, tp)?)
    }

    /// Stores the keys of the clean result, where the family does that.
    fn commit(
        &mut self,
        steps: &Steps,
        latents: &Tensor,
        kv: &mut KvCache,
        text: &TextCache,
        tp: &Tp,
    ) -> Result<bool, GenerateError> {
        let commits = self.config.family.has_clean_pass();
        if commits {
            let timesteps = vec![0.0; steps.frames];
            self.dit.fill_cache(latents, &timesteps, steps.unbiased, kv, text, tp)?;
        }
        Ok(commits)
    }

    /// Clean latents as step `i` predicts them from noisy ones.
    fn denoise(
        &mut self,
        steps: &Steps,
        i: usize,
        latents: &Tensor,
        kv: &mut KvCache,
        text: &TextCache,
        tp: &Tp,
    ) -> Result<Tensor, GenerateError> {
        let timestep = steps.timesteps[i];
        let timesteps = vec![timestep; steps.frames];
        let flow = self.dit.forward(latents, &timesteps, steps.biased, kv, text, tp)?;
        Ok(self.scheduler.x0_from_flow(&flow, latents, timestep)?)
    }

    /// What the steps after the first make of its prediction; `renoise` has one tensor for each of them.
    fn other_steps(
        &mut self,
        steps: &Steps,
        mut clean: Tensor,
        renoise: &[Tensor],
        kv: &mut KvCache,
        text: &TextCache,
        tp: &Tp,
    ) -> Result<Tensor, GenerateError> {
        for (i, noise) in (1..steps.timesteps.len()).zip(renoise) {
            let latents = self.scheduler.add_noise(&clean, noise, steps.timesteps[i])?;
            clean = self.denoise(steps, i, &latents, kv, text, tp)?;
        }
        Ok(clean)
    }

    /// Brings the slot's caches into the state the call asks for. Where one gets another place, the slot's graph goes.
    fn prepare<'a>(
        &self,
        index: usize,
        slot: &'a mut Slot,
        args: &ChunkArgs,
        tp: &Tp,
    ) -> Result<Prepared<'a>, GenerateError> {
        let Slot { kv, prompt, text, shape, graph } = slot;
        let size = latent_size(args.latents_in);
        let cache = match kv.take() {
            Some((mut cache, held)) if held == size => {
                if args.init_cache || args.reset_kv_cache {
                    cache.reset();
                }
                cache
            }
            old => {
                // They go first: two may not fit.
                drop((graph.take(), old));
                self.dit.new_cache(self.kv_spec(size))?
            }
        };
        if let Some(new) = args.conditioning {
            // A copy: the caller's tensor may be a view of memory that it reuses.
            *prompt = Some(new.f_to_device(self.dit.options().1)?.f_detach_copy()?);
        }
        let made = || {
            let prompt = prompt.as_ref().ok_or(GenerateError::NoPrompt { slot: index })?;
            Ok::<_, GenerateError>(self.dit.text_cache(prompt, tp)?)
        };
        let stale = args.conditioning.is_some() || args.init_cache || args.reset_crossattn_cache;
        let keys = match (text.take(), &graph) {
            (Some(keys), _) if !stale => keys,
            (Some(mut keys), Some(_)) => {
                keys.overwrite(&made()?)?;
                keys
            }
            (old, _) => {
                drop(old);
                made()?
            }
        };
        let (kv, _) = kv.insert((cache, size));
        Ok(Prepared { kv, text: text.insert(keys), shape, graph })
    }

    fn kv_spec(&self, (height, width): (i64, i64)) -> KvCacheSpec {
        let (config, family) = (&self.config, self.config.family);
        let per_frame = config.dit.tokens_per_frame(height, width);
        let window = config.local_attn_size * per_frame;
        let sink = family.sink_size() * per_frame;
        KvCacheSpec { capacity: window, sink, max_attention: window, evicts: family.evicts() }
    }

    /// Position of the chunk's first frame in the KV cache and in the rotary embedding.
    fn start_frame(&self, current_start_frame: i64) -> i64 {
        match self.config.family {
            Family::Krea => current_start_frame.min(self.config.kv_cache_num_frames),
            Family::SelfForcing { .. } => current_start_frame,
        }
    }

    /// Timestep that a stated step stands for.
    fn timestep(&self, step: u32) -> Option<f64> {
        if self.config.family.warps_steps() {
            self.scheduler.warp(step).map(f64::from)
        } else {
            Some(f64::from(step))
        }
    }
}

/// Height and width of latents `[1, F, C, h, w]`.
fn latent_size(latents: &Tensor) -> (i64, i64) {
    let size = latents.size();
    (size[3], size[4])
}

fn to_len(count: i64) -> usize {
    usize::try_from(count).unwrap_or(0)
}

/// What the passes of a call have in common.
struct Steps {
    timesteps: Vec<f64>,
    frames: usize,
    biased: Attend,
    unbiased: Attend,
}

/// Host time between marks.
struct PhaseClock {
    last: Instant,
    phases: Vec<(&'static str, Duration)>,
}

impl PhaseClock {
    fn new() -> Self {
        Self { last: Instant::now(), phases: Vec::new() }
    }

    fn mark(&mut self, phase: &'static str) {
        let now = Instant::now();
        self.phases.push((phase, now - self.last));
        self.last = now;
    }
}
