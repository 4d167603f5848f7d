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
    let config = &run.config;
    let mut generator = Generator::new(config, dit(Shard::WHOLE), 1);
    let (mut total, mut made) = (0, Vec::new());
    for index in run.chunks() {
        let chunk = run.chunk(index, &made);
        let output = solo(|tp| chunk.generate(&mut generator, tp)).unwrap();
        run.check_latents(index, &output.latents);

        let calls = output.generator_calls.read().unwrap().cast_signed();
        total += calls;
        run.check_calls(index, calls, total);
        let expected = Generator::expected_calls(config, run.timesteps.len(), chunk.context.is_some());
        assert_eq!(calls, i64::from(expected), "chunk {index}");
        assert_eq!(output.current_start_frame, chunk.current_start_frame + config.num_frame_per_block);
        run.check_cache(index, generator.kv_cache(0).unwrap());
        made.push(output.latents);
    }
    run.results.assert_compared();
}

#[test]
fn golden_generator_krea() {
    check(&Run::krea(KREA, KREA));
}

#[test]
fn golden_generator_krea_with_bias() {
    check(&Run::krea(KREA_BIAS, "causal_dit_stream_krea_bias_nopad"));
}

#[test]
fn golden_generator_selfforcing() {
    check(&Run::self_forcing(SELF_FORCING, SELF_FORCING));
}

#[test]
fn golden_generator_selfforcing_without_sink() {
    check(&Run::self_forcing(SELF_FORCING, "causal_dit_stream_selfforcing_nosink"));
}

/// What recovery relies on: the cache of a Krea stream is a function of the context frames alone.
#[test]
fn golden_a_stream_continues_in_an_empty_slot_from_its_context() {
    let run = Run::krea(KREA, KREA);
    let mut generator = Generator::new(&run.config, dit(Shard::WHOLE), 1);
    let mut made = Vec::new();
    for index in run.chunks() {
        generator.clear_slot(0);
        let output = solo(|tp| run.chunk(index, &made).generate(&mut generator, tp)).unwrap();
        run.check_latents(index, &output.latents);
        made.push(output.latents);
    }
    run.results.assert_compared();
}
