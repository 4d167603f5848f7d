//! The generator, as an engine calls it, against the streamed runs of the reference data.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use support::stream::{Run, dit, solo};
use wan::dit::Shard;
use wan::generator::Generator;

const KREA: &str = "causal_dit_stream_krea";
const KREA_BIAS: &str = "causal_dit_stream_krea_bias";
const SELF_FORCING: &str = "causal_dit_stream_selfforcing";

fn check(run: &Run) {
    let config = run.config();
    let mut generator = Generator::new(&config, dit(Shard::WHOLE), 1);
    let mut total = 0;
    for index in run.chunks() {
        let chunk = run.chunk(index);
        let key = |name: &str| format!("chunk{index}.{name}");
        let output = solo(|tp| chunk.generate(&mut generator, tp)).unwrap();
        assert!(run.results.check(&key("latents"), &output.latents));

        total += i64::from(output.generator_calls);
        let expected = Generator::expected_calls(&config, run.steps().len(), chunk.context.is_some());
        assert_eq!(output.generator_calls, expected, "{}", key("generator_calls"));
        assert_eq!(output.current_start_frame, chunk.current_start_frame + config.num_frame_per_block);
        let cache = generator.kv_cache(0).unwrap();
        let counts = [
            ("generator_calls", i64::from(output.generator_calls)),
            ("generator_calls_total", total),
            ("kv.global_end_index", cache.global_end()),
            ("kv.local_end_index", cache.local_end()),
        ];
        for (name, found) in counts {
            if let Some(expected) = run.results.integer(&key(name)) {
                assert_eq!(found, expected, "{}", key(name));
            }
        }
        for (name, layer) in [("layer0", 0), ("layer_last", config.dit.num_layers as usize - 1)] {
            let (k, v) = cache.held(layer).unwrap();
            run.results.check(&key(&format!("kv.{name}.k")), &k);
            run.results.check(&key(&format!("kv.{name}.v")), &v);
        }
    }
}

#[test]
fn golden_generator_krea() {
    check(&Run::krea(KREA, KREA, 1.0));
}

#[test]
fn golden_generator_krea_with_bias() {
    check(&Run::krea(KREA_BIAS, "causal_dit_stream_krea_bias_nopad", 0.3));
}

#[test]
fn golden_generator_selfforcing() {
    check(&Run::self_forcing(SELF_FORCING, SELF_FORCING, 1));
}

#[test]
fn golden_generator_selfforcing_without_sink() {
    check(&Run::self_forcing(SELF_FORCING, "causal_dit_stream_selfforcing_nosink", 0));
}

#[test]
fn golden_a_stream_continues_in_an_empty_slot_from_its_context() {
    // What recovery relies on: the cache of a Krea stream is a function of the context frames alone.
    let run = Run::krea(KREA, KREA, 1.0);
    let mut generator = Generator::new(&run.config(), dit(Shard::WHOLE), 1);
    let steps = run.steps();
    for index in run.chunks().into_iter().skip(1) {
        let chunk = run.chunk(index);
        generator.clear_slot(0);
        let args = wan::generator::ChunkArgs {
            current_start_frame: chunk.current_start_frame,
            latents_in: &chunk.noise,
            conditioning: Some(&chunk.prompt),
            context_frames: chunk.context.as_ref(),
            denoising_steps: &steps,
            base_seed: run.base_seed(),
            kv_cache_attention_bias: run.bias,
            init_cache: true,
            reset_kv_cache: false,
            reset_crossattn_cache: false,
        };
        let output = solo(|tp| generator.generate(0, &args, tp)).unwrap();
        assert!(run.results.check(&format!("chunk{index}.latents"), &output.latents));
    }
}
