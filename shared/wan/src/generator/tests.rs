//! What the generator refuses, and what it leaves alone when it does.

use std::time::{Duration, Instant};

use collectives::Solo;
use tch::{Device, Kind, Tensor};

use super::*;
use crate::dit::Shard;
use crate::weights::SyntheticSource;

fn generator(family: Family) -> Generator {
    generator_of(family, Kind::Float)
}

fn generator_of(family: Family, kind: Kind) -> Generator {
    let mut config = ModelConfig { family, ..ModelConfig::named("tiny").unwrap() };
    config.dit.num_layers = 1;
    let source = SyntheticSource::new(1);
    let dit = CausalDit::load(&config.dit, &source, Shard::WHOLE, Device::Cpu, kind).unwrap();
    Generator::new(&config, dit, 2)
}

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Float, Device::Cpu))
}

fn latents(frames: i64, size: i64) -> Tensor {
    Tensor::ones([1, frames, 16, size, size], (Kind::Float, Device::Cpu)) * 0.5
}

/// Runs `check` with the arguments of a good first chunk.
fn with_args<T>(check: impl FnOnce(ChunkArgs, &Tp) -> T) -> T {
    let (noise, prompt) = (latents(3, 4), zeros(&[1, 8, 64]));
    let args = ChunkArgs {
        current_start_frame: 0,
        latents_in: &noise,
        conditioning: Some(&prompt),
        context_frames: None,
        denoising_steps: &[1000, 500],
        base_seed: 42,
        kv_cache_attention_bias: 1.0,
        init_cache: true,
        reset_kv_cache: false,
        reset_crossattn_cache: false,
    };
    let solo = Solo::new();
    check(args, &Tp { collective: &solo, deadline: Instant::now() + Duration::from_secs(60) })
}

fn calls_of(output: &ChunkOutput) -> u32 {
    output.generator_calls.read().unwrap().try_into().unwrap()
}

fn refusal(generator: &mut Generator, args: &ChunkArgs, tp: &Tp) -> String {
    let calls = generator.dit().forwards().read().unwrap();
    let error = generator.generate(0, args, tp).unwrap_err().to_string();
    assert_eq!(generator.dit().forwards().read().unwrap(), calls, "a refused chunk ran the model");
    error
}

#[test]
fn calls_are_counted_and_as_expected() {
    for (family, first, later) in [(Family::Krea, 2, 3), (Family::SelfForcing { sink_size: 1 }, 3, 3)] {
        let mut generator = generator(family);
        with_args(|args, tp| {
            let output = generator.generate(0, &args, tp).unwrap();
            assert_eq!((calls_of(&output), output.current_start_frame), (first, 3));
            assert_eq!(Generator::expected_calls(generator.config(), 2, false), first);
            let context = family.recomputes().then(|| latents(3, 4));
            let next = ChunkArgs {
                current_start_frame: 3,
                conditioning: None,
                init_cache: false,
                context_frames: context.as_ref(),
                ..args
            };
            assert_eq!(calls_of(&generator.generate(0, &next, tp).unwrap()), later);
            assert_eq!(Generator::expected_calls(generator.config(), 2, family.recomputes()), later);
        });
    }
}

#[test]
fn bad_arguments_are_refused_by_name() {
    let mut generator = generator(Family::Krea);
    let wrong_frames = latents(2, 4);
    let odd = latents(3, 5);
    let wide = zeros(&[1, 8, 65]);
    let context = latents(3, 4);
    let small_context = latents(2, 4);
    with_args(|args, tp| {
        let cases = [
            ("denoising_steps: [500, 1000]", ChunkArgs { denoising_steps: &[500, 1000], ..args }),
            ("denoising_steps: [1001]", ChunkArgs { denoising_steps: &[1001], ..args }),
            ("denoising_steps: []", ChunkArgs { denoising_steps: &[], ..args }),
            ("latents_in: shape [1, 2, 16, 4, 4]", ChunkArgs { latents_in: &wrong_frames, ..args }),
            ("latents_in: shape [1, 3, 16, 5, 5]", ChunkArgs { latents_in: &odd, ..args }),
            ("conditioning: shape [1, 8, 65]", ChunkArgs { conditioning: Some(&wide), ..args }),
            ("kv_cache_attention_bias: 0", ChunkArgs { kv_cache_attention_bias: 0.0, ..args }),
            ("kv_cache_attention_bias: NaN", ChunkArgs { kv_cache_attention_bias: f64::NAN, ..args }),
            ("current_start_frame: 4", ChunkArgs { current_start_frame: 4, ..args }),
            ("current_start_frame: 3 does not follow", ChunkArgs { current_start_frame: 3, ..args }),
            ("context_frames: given at frame 0", ChunkArgs { context_frames: Some(&context), ..args }),
            (
                "context_frames: shape [1, 2, 16, 4, 4]",
                ChunkArgs { context_frames: Some(&small_context), current_start_frame: 3, ..args },
            ),
        ];
        for (expected, args) in cases {
            let error = refusal(&mut generator, &args, tp);
            assert!(error.starts_with(expected), "{error}, expected {expected}");
        }
        let error = generator.generate(2, &args, tp).unwrap_err().to_string();
        assert_eq!(error, "slot 2: allowed: 0..2");
        generator.generate(0, &args, tp).unwrap();
    });
}

#[test]
fn a_slot_without_a_prompt_asks_for_one() {
    let mut generator = generator(Family::Krea);
    with_args(|args, tp| {
        let error = refusal(&mut generator, &ChunkArgs { conditioning: None, ..args }, tp);
        assert_eq!(error, "slot 0 has no prompt yet and the call brings none");
    });
}

#[test]
fn another_size_needs_init_cache() {
    let mut generator = generator(Family::Krea);
    let larger = latents(3, 6);
    with_args(|args, tp| {
        generator.generate(0, &args, tp).unwrap();
        let again = ChunkArgs { latents_in: &larger, init_cache: false, ..args };
        let error = refusal(&mut generator, &again, tp);
        assert!(
            error.contains("(4, 4)") && error.contains("(6, 6)") && error.contains("init_cache"),
            "{error}"
        );
        let fresh = ChunkArgs { latents_in: &larger, conditioning: None, ..args };
        assert_eq!(generator.generate(0, &fresh, tp).unwrap().latents.size(), [1, 3, 16, 6, 6]);
    });
}

#[test]
fn self_forcing_refuses_what_it_has_not() {
    let mut generator = generator(Family::SelfForcing { sink_size: 0 });
    let context = latents(3, 4);
    with_args(|args, tp| {
        let error = refusal(&mut generator, &ChunkArgs { kv_cache_attention_bias: 0.3, ..args }, tp);
        assert!(error.contains("0.3") && error.contains("allows 1 only"), "{error}");
        let args = ChunkArgs { context_frames: Some(&context), current_start_frame: 3, ..args };
        assert!(refusal(&mut generator, &args, tp).contains("does not recompute"));
    });
}

#[test]
fn slots_do_not_see_one_another_and_a_cleared_one_starts_over() {
    let mut generator = generator(Family::Krea);
    with_args(|args, tp| {
        let first = generator.generate(0, &args, tp).unwrap().latents;
        let seed = ChunkArgs { base_seed: 7, ..args };
        let other = generator.generate(1, &seed, tp).unwrap().latents;
        assert!(!first.equal(&other));
        generator.clear_slot(0);
        assert!(generator.kv_cache(0).is_none() && generator.kv_cache(1).is_some());
        let again = ChunkArgs { init_cache: false, ..args };
        assert!(first.equal(&generator.generate(0, &again, tp).unwrap().latents));
    });
}

#[test]
fn an_identical_prompt_changes_nothing() {
    let mut generator = generator(Family::Krea);
    let context = latents(3, 4);
    with_args(|args, tp| {
        let next =
            ChunkArgs { current_start_frame: 3, init_cache: false, context_frames: Some(&context), ..args };
        generator.generate(0, &args, tp).unwrap();
        let given = generator.generate(0, &next, tp).unwrap().latents;
        let kept = generator.generate(0, &ChunkArgs { conditioning: None, ..next }, tp).unwrap().latents;
        assert!(given.equal(&kept));
    });
}

#[test]
fn a_failed_chunk_empties_the_slot() {
    let mut generator = generator(Family::Krea);
    with_args(|args, tp| {
        generator.generate(0, &args, tp).unwrap();
        // A collective that is over: the failure comes from inside the pass.
        struct Gone;
        impl collectives::Collective for Gone {
            fn rank(&self) -> u32 {
                0
            }
            fn world_size(&self) -> u32 {
                2
            }
            fn all_reduce(
                &self,
                _: &mut Tensor,
                _: collectives::ReduceOp,
                _: Instant,
            ) -> Result<(), collectives::CollectiveError> {
                Err(collectives::CollectiveError::Aborted { reason: "rank 1 is gone".into() })
            }
            fn broadcast(
                &self,
                _: &mut Tensor,
                _: u32,
                _: Instant,
            ) -> Result<(), collectives::CollectiveError> {
                Ok(())
            }
            fn barrier(&self, _: Instant) -> Result<(), collectives::CollectiveError> {
                Ok(())
            }
            fn abort(&self, _: &str) {}
        }
        let gone = Tp { collective: &Gone, ..*tp };
        let error = refusal(&mut generator, &args, &gone);
        assert!(error.contains("rank 0 of 2"), "{error}");
        let shard = Shard { rank: 0, world: 2 };
        let config = generator.config().clone();
        let dit =
            CausalDit::load(&config.dit, &SyntheticSource::new(1), shard, Device::Cpu, Kind::Float).unwrap();
        let mut sharded = Generator::new(&config, dit, 1);
        let error = sharded.generate(0, &args, &gone).unwrap_err();
        assert!(matches!(error, GenerateError::Dit(DitError::Collective(_))), "{error}");
        assert!(sharded.kv_cache(0).is_none());
    });
}

#[test]
fn a_world_size_that_does_not_divide_the_heads_is_refused_with_the_valid_ones() {
    let config = ModelConfig::named("tiny").unwrap();
    let load = |rank, world| {
        let shard = Shard { rank, world };
        CausalDit::load(&config.dit, &SyntheticSource::new(1), shard, Device::Cpu, Kind::Float)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(load(0, 3), "world size 3 does not divide this model's 4 heads; allowed: [1, 2, 4]");
    assert_eq!(load(2, 2), "rank 2 is outside world size 2");
}

#[test]
fn bfloat16_stays_near_float32() {
    let [full, half] = [Kind::Float, Kind::BFloat16].map(|kind| {
        let mut generator = generator_of(Family::Krea, kind);
        let context = latents(3, 4);
        with_args(|args, tp| {
            generator.generate(0, &args, tp).unwrap();
            let next = ChunkArgs {
                current_start_frame: 3,
                init_cache: false,
                context_frames: Some(&context),
                kv_cache_attention_bias: 0.3,
                ..args
            };
            generator.generate(0, &next, tp).unwrap().latents
        })
    });
    assert_eq!(half.kind(), Kind::Float);
    let difference = (full - half).abs().mean(Kind::Float).double_value(&[]);
    assert!(difference > 0.0 && difference < 0.05, "mean difference {difference}");
}

#[test]
fn a_cpu_captures_no_graphs_and_says_why() {
    let mut generator = generator(Family::Krea);
    assert_eq!(generator.graphs(), &Graphs::Off { because: "Cpu has none".to_owned() });
    with_args(|args, tp| {
        let context = latents(3, 4);
        generator.generate(0, &args, tp).unwrap();
        let again = ChunkArgs {
            current_start_frame: 3,
            conditioning: None,
            init_cache: false,
            context_frames: Some(&context),
            ..args
        };
        for _ in 0..3 {
            generator.generate(0, &again, tp).unwrap();
            assert!(!generator.has_graph(0));
        }
    });
}
