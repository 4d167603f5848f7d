//! Streamed runs pass by pass: flow and clean prediction of every step, and the KV cache after each chunk.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use support::stream::{Chunk, Run, dit, solo};
use support::{TOLERANCE, assert_close};
use tch::{Kind, Tensor};
use wan::config::Family;
use wan::dit::{Attend, CausalDit, KvCache, KvCacheSpec, Shard, TextCache, Tp};
use wan::noise::BlockNoise;
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
        let config = run.config();
        let size = run.chunk(0).noise.size();
        let per_frame = config.dit.tokens_per_frame(size[3], size[4]);
        let window = config.local_attn_size * per_frame;
        let spec = KvCacheSpec {
            capacity: window,
            sink: run.family.sink_size() * per_frame,
            max_attention: window,
            evicts: run.family.evicts(),
        };
        let dit = dit(Shard::WHOLE);
        let cache = dit.new_cache(spec).unwrap();
        Self { run, dit, cache, text: None, scheduler: FlowScheduler::new(config.shift) }
    }

    /// Timesteps of a pass, one for each frame: from the results when they have their own, else from the inputs.
    fn timesteps(&self, key: &str) -> Vec<f64> {
        let tensor = self.run.results.find(key).unwrap_or_else(|| self.run.inputs.get(key));
        tensor.to_kind(Kind::Double).flatten(0, -1).try_into().unwrap()
    }

    fn forward(&mut self, x: &Tensor, timesteps: &[f64], attend: Attend, tp: &Tp) -> Tensor {
        let text = self.text.as_ref().unwrap();
        self.dit.forward(x, timesteps, attend, &mut self.cache, text, tp).unwrap()
    }

    fn chunk(&mut self, chunk: &Chunk, tp: &Tp) {
        let (run, config) = (self.run, self.run.config());
        let key = |name: &str| format!("chunk{}.{name}", chunk.index);
        let block_frames = config.num_frame_per_block;
        if chunk.prompt_changed() {
            self.text = Some(self.dit.text_cache(&chunk.prompt, tp).unwrap());
        }
        if let Some(context) = &chunk.context {
            run.results.check(&key("context_frames"), context);
            let timesteps = vec![0.0; context.size()[1] as usize];
            let flow = self.forward(context, &timesteps, Attend::Recompute { block_frames }, tp);
            run.results.check(&key("recompute.flow_pred"), &flow);
        }
        let start_frame = match run.family {
            Family::Krea => chunk.current_start_frame.min(config.kv_cache_num_frames),
            Family::SelfForcing { .. } => chunk.current_start_frame,
        };
        if let Some(expected) = run.results.integer(&key("start_frame")) {
            assert_eq!(start_frame, expected, "{}", key("start_frame"));
        }
        let attend = |bias| Attend::Cached { start_frame, bias, block_frames };
        let mut latents = chunk.noise.shallow_clone();
        for step in 0..=chunk.renoise.len() {
            let timesteps = self.timesteps(&key(&format!("step{step}.timestep")));
            let flow = self.forward(&latents, &timesteps, attend(run.bias), tp);
            run.results.check(&key(&format!("step{step}.flow_pred")), &flow);
            let clean = self.scheduler.x0_from_flow(&flow, &latents, timesteps[0]).unwrap();
            run.results.check(&key(&format!("step{step}.x0_pred")), &clean);
            latents = match chunk.renoise.get(step) {
                Some(noise) => {
                    let next = self.timesteps(&key(&format!("step{}.timestep", step + 1)))[0];
                    self.scheduler.add_noise(&clean, noise, next).unwrap()
                }
                None => clean,
            };
        }
        if run.family.has_clean_pass() {
            let timesteps = self.timesteps(&key("clean_pass.timestep"));
            let flow = self.forward(&latents, &timesteps, attend(1.0), tp);
            run.results.check(&key("clean_pass.flow_pred"), &flow);
        }
        assert!(run.results.check(&key("latents"), &latents));
        check_cache(run, chunk.index, &self.cache, self.dit.blocks().len());
    }
}

/// Compares indices and contents with what the set has of them.
fn check_cache(run: &Run, chunk: usize, cache: &KvCache, layers: usize) {
    let key = |name: &str| format!("chunk{chunk}.kv.{name}");
    for (name, found) in [("global_end_index", cache.global_end()), ("local_end_index", cache.local_end())] {
        if let Some(expected) = run.results.integer(&key(name)) {
            assert_eq!(found, expected, "{}", key(name));
        }
    }
    for (name, layer) in [("layer0", 0), ("layer_last", layers - 1)] {
        let (k, v) = cache.held(layer).unwrap();
        run.results.check(&key(&format!("{name}.k")), &k);
        run.results.check(&key(&format!("{name}.v")), &v);
    }
}

fn check(run: &Run) {
    let mut stream = Stream::new(run);
    solo(|tp| run.chunks().into_iter().for_each(|c| stream.chunk(&run.chunk(c), tp)));
}

const KREA: &str = "causal_dit_stream_krea";
const KREA_BIAS: &str = "causal_dit_stream_krea_bias";
const SELF_FORCING: &str = "causal_dit_stream_selfforcing";

#[test]
fn golden_stream_krea() {
    check(&Run::krea(KREA, KREA, 1.0));
}

#[test]
fn golden_stream_krea_bias_nopad() {
    check(&Run::krea(KREA_BIAS, "causal_dit_stream_krea_bias_nopad", 0.3));
}

#[test]
fn golden_stream_krea_warped() {
    check(&Run::krea(KREA, "causal_dit_stream_krea_warped", 1.0));
}

#[test]
fn golden_stream_selfforcing() {
    check(&Run::self_forcing(SELF_FORCING, SELF_FORCING, 1));
}

#[test]
fn golden_stream_selfforcing_nosink() {
    check(&Run::self_forcing(SELF_FORCING, "causal_dit_stream_selfforcing_nosink", 0));
}

#[test]
fn golden_noise_of_each_block() {
    for run in [Run::krea(KREA, KREA, 1.0), Run::krea(KREA_BIAS, KREA_BIAS, 0.3)] {
        for index in run.chunks() {
            let chunk = run.chunk(index);
            let size = chunk.noise.size();
            let shape = [size[1], size[2], size[3], size[4]];
            let (seed, steps) = (run.base_seed(), chunk.renoise.len() + 1);
            let drawn = BlockNoise::draw(seed, chunk.current_start_frame, shape, steps).unwrap();
            assert_close("noise", &drawn.initial, &chunk.noise, 1e-6);
            for (found, expected) in drawn.renoise.iter().zip(&chunk.renoise) {
                assert_close("renoise", &found.view_as(expected), expected, 1e-6);
            }
            if let Some(block_seed) = run.inputs.integer(&format!("chunk{index}.block_seed")) {
                assert_eq!(seed as i64 + chunk.current_start_frame, block_seed);
            }
        }
    }
}

#[test]
fn golden_zero_key_padding_is_what_we_leave_out() {
    // The padded run differs from ours by far more than the tolerance; were it equal, the bias would not be applied.
    let run = Run::krea(KREA_BIAS, KREA_BIAS, 0.3);
    let nopad = Run::krea(KREA_BIAS, "causal_dit_stream_krea_bias_nopad", 0.3);
    let last = *run.chunks().last().unwrap();
    let latents = |run: &Run| run.results.get(&format!("chunk{last}.latents"));
    assert!(support::difference(&latents(&run), &latents(&nopad)) > 1000.0 * TOLERANCE);
}
