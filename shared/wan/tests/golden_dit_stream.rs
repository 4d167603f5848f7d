//! Streamed runs pass by pass: flow and clean prediction of every step, and the KV cache after each chunk.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use support::stream::{Chunk, Run, dit, solo};
use tch::{Kind, Tensor};
use wan::config::Family;
use wan::dit::{Attend, CausalDit, KvCache, KvCacheSpec, Shard, TextCache, Tp};
use wan::scheduler::FlowScheduler;

/// One model and one cache, driven with the timesteps that the run states.
struct Stream<'a> {
    run: &'a Run,
    dit: CausalDit,
    cache: KvCache,
    text: Option<TextCache>,
    scheduler: FlowScheduler,
}

impl<'a> Stream<'a> {
    fn new(run: &'a Run) -> Self {
        let (config, per_frame) = (&run.config, run.tokens_per_frame());
        let window = config.local_attn_size * per_frame;
        let spec = KvCacheSpec {
            capacity: window,
            sink: config.family.sink_size() * per_frame,
            max_attention: window,
            evicts: config.family.evicts(),
        };
        let dit = dit(Shard::WHOLE);
        let cache = dit.new_cache(spec).unwrap();
        Self { run, dit, cache, text: None, scheduler: FlowScheduler::new(config.shift) }
    }

    /// Timesteps of a pass, one for each frame: those that were given to the reference, where the results have them.
    fn timesteps(&self, key: &str, stated: f64) -> Vec<f64> {
        let stated = vec![stated; self.run.config.num_frame_per_block as usize];
        self.run.results.check_within(key, &Tensor::from_slice(&stated).unsqueeze(0), 2e-4);
        let given = self.run.results.find(key).map(|t| t.to_kind(Kind::Double).flatten(0, -1));
        given.map_or(stated, |given| given.try_into().unwrap())
    }

    fn forward(&mut self, x: &Tensor, timesteps: &[f64], attend: Attend, tp: &Tp) -> Tensor {
        let text = self.text.as_ref().unwrap();
        self.dit.forward(x, timesteps, attend, &mut self.cache, text, tp).unwrap()
    }

    fn chunk(&mut self, chunk: &Chunk, tp: &Tp) -> Tensor {
        let run = self.run;
        let config = &run.config;
        let key = |name: &str| format!("chunk{}.{name}", chunk.index);
        let step_key = |step: usize, name: &str| key(&format!("step{step}.{name}"));
        let block_frames = config.num_frame_per_block;
        let calls_before = self.dit.forwards().read().unwrap();
        if chunk.prompt_changed() {
            self.text = Some(self.dit.text_cache(&chunk.prompt, tp).unwrap());
        }
        if let Some(context) = &chunk.context {
            run.results.check(&key("context_frames"), context);
            let timesteps = vec![0.0; context.size()[1] as usize];
            let flow = self.forward(context, &timesteps, Attend::Recompute { block_frames }, tp);
            run.results.check(&key("recompute.flow_pred"), &flow);
        }
        let start_frame = match config.family {
            Family::Krea => chunk.current_start_frame.min(config.kv_cache_num_frames),
            Family::SelfForcing { .. } => chunk.current_start_frame,
        };
        let attend = |bias| Attend::Cached { start_frame, bias, block_frames };
        let mut latents = chunk.noise.shallow_clone();
        for (step, stated) in run.timesteps.iter().enumerate() {
            let timesteps = self.timesteps(&step_key(step, "timestep"), *stated);
            let flow = self.forward(&latents, &timesteps, attend(run.bias), tp);
            run.results.check(&step_key(step, "flow_pred"), &flow);
            let clean = self.scheduler.x0_from_flow(&flow, &latents, timesteps[0]).unwrap();
            run.results.check(&step_key(step, "x0_pred"), &clean);
            latents = match (chunk.renoise.get(step), run.timesteps.get(step + 1)) {
                (Some(noise), Some(next)) => {
                    let next = self.timesteps(&step_key(step + 1, "timestep"), *next)[0];
                    self.scheduler.add_noise(&clean, noise, next).unwrap()
                }
                _ => clean,
            };
        }
        if config.family.has_clean_pass() {
            let timesteps = self.timesteps(&key("clean_pass.timestep"), 0.0);
            let flow = self.forward(&latents, &timesteps, attend(1.0), tp);
            run.results.check(&key("clean_pass.flow_pred"), &flow);
        }
        run.check_latents(chunk.index, &latents);
        run.check_cache(chunk.index, &self.cache);
        let total = self.dit.forwards().read().unwrap();
        run.check_calls(chunk.index, (total - calls_before).cast_signed(), total.cast_signed());
        latents
    }
}

fn check(run: &Run) {
    let mut stream = Stream::new(run);
    let mut made = Vec::new();
    for index in run.chunks() {
        let latents = solo(|tp| stream.chunk(&run.chunk(index, &made), tp));
        made.push(latents);
    }
    run.results.assert_compared();
}

const KREA: &str = "causal_dit_stream_krea";
const KREA_BIAS: &str = "causal_dit_stream_krea_bias";
const SELF_FORCING: &str = "causal_dit_stream_selfforcing";

#[test]
fn golden_stream_krea() {
    check(&Run::krea(KREA, KREA));
}

/// The reference's padding with zero keys, which the run without `nopad` has, is an artefact of its kernel.
#[test]
fn golden_stream_krea_bias_nopad() {
    check(&Run::krea(KREA_BIAS, "causal_dit_stream_krea_bias_nopad"));
}

#[test]
fn golden_stream_krea_warped() {
    check(&Run::krea(KREA, "causal_dit_stream_krea_warped"));
}

#[test]
fn golden_stream_selfforcing() {
    check(&Run::self_forcing(SELF_FORCING, SELF_FORCING));
}

#[test]
fn golden_stream_selfforcing_nosink() {
    check(&Run::self_forcing(SELF_FORCING, "causal_dit_stream_selfforcing_nosink"));
}
