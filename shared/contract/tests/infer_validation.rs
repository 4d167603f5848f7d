//! Preflight and admission: every way a call can be wrong is refused by name.

use contract::envelope::Infer;
use contract::model::{ModelInfo, Size};
use contract::params::Parameters;
use contract::tensor::{Dtype, TensorKey, TensorSpec};
use contract::{
    CacheEpoch, ChunkIndex, Digest, Generation, LinkSlot, Reason, SessionId, SessionSlot, WorldSize,
};

const SIZE: Size = Size { width: 128, height: 96 };

fn model() -> ModelInfo {
    ModelInfo {
        name: "tiny".into(),
        fingerprint: "f".into(),
        sizes: vec![SIZE],
        dtype: Dtype::F32,
        latent_channels: 16,
        spatial_stride: 8,
        frames_per_chunk: 3,
        context_frames: 3,
        text_len: 64,
        text_dim: 32,
        recompute: true,
        extra_calls: 0,
        default_steps: vec![1000, 500],
        default_attention_bias: 0.3,
        world_sizes: vec![WorldSize::ONE],
        examples: Vec::new(),
    }
}

fn spec(key: TensorKey, shape: &[i64], slot: u32) -> TensorSpec {
    TensorSpec {
        key,
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        slot: LinkSlot(slot),
        byte_offset: 0,
        byte_len: shape.iter().product::<i64>() as u64 * 4,
        generation: Generation(1),
    }
}

/// The second chunk of a history: everything present.
fn call() -> Infer {
    Infer {
        session: SessionId::random(),
        session_slot: SessionSlot(0),
        chunk_index: ChunkIndex(1),
        cache_epoch: CacheEpoch(1),
        size: SIZE,
        current_start_frame: 3,
        num_latent_frames: 3,
        denoising_steps: vec![1000, 500],
        do_kv_recompute: true,
        init_cache: false,
        reset_kv_cache: false,
        reset_crossattn_cache: false,
        base_seed: 42,
        kv_cache_attention_bias: 0.3,
        noise_scale: None,
        tp_plan: None,
        expected_generator_calls: 3,
        conditioning: Digest::of(&[b"a fox"]),
        tensors: vec![
            spec(TensorKey::LatentsIn, &[1, 3, 16, 12, 16], 0),
            spec(TensorKey::ConditioningEmbeds, &[1, 64, 32], 1),
            spec(TensorKey::ContextFrames, &[1, 3, 16, 12, 16], 2),
        ],
    }
}

#[test]
fn a_complete_call_is_admitted() {
    assert_eq!(call().validate(&model()), Ok(()));
}

type Break = fn(&mut Infer);

#[test]
fn each_defect_is_refused_with_its_own_reason() {
    let table: [(Reason, &str, Break); 17] = [
        (Reason::UnsupportedSize, "128x96", |c| c.size.width = 256),
        (Reason::BadSteps, "[500, 1000]", |c| c.denoising_steps = vec![500, 1000]),
        (Reason::BadSteps, "[]", |c| c.denoising_steps.clear()),
        (Reason::BadSteps, "[2000]", |c| c.denoising_steps = vec![2000]),
        (Reason::BadField, "num_latent_frames is 4", |c| c.num_latent_frames = 4),
        (Reason::BadField, "kv_cache_attention_bias is 0", |c| c.kv_cache_attention_bias = 0.0),
        (Reason::BadField, "kv_cache_attention_bias is NaN", |c| c.kv_cache_attention_bias = f32::NAN),
        (Reason::BadField, "noise_scale is 2", |c| c.noise_scale = Some(2.0)),
        (Reason::UnsupportedParameter, "noise_scale", |c| c.noise_scale = Some(0.5)),
        (Reason::BadField, "do_kv_recompute is false", |c| c.do_kv_recompute = false),
        (Reason::CallCount, "expected_generator_calls is 9", |c| c.expected_generator_calls = 9),
        (Reason::MissingTensor, "latents_in", |c| drop(c.tensors.remove(0))),
        (Reason::MissingTensor, "context_frames", |c| drop(c.tensors.pop())),
        (Reason::BadShape, "latents_in has shape [1, 3, 16, 12, 12]", |c| c.tensors[0].shape[4] = 12),
        (Reason::BadShape, "latents_in has 7 bytes", |c| c.tensors[0].byte_len = 7),
        (Reason::BadDtype, "latents_in has dtype bf16", |c| c.tensors[0].dtype = Dtype::Bf16),
        (Reason::BadField, "repeated", |c| c.tensors.push(c.tensors[1].clone())),
    ];
    for (reason, text, damage) in table {
        let mut call = call();
        damage(&mut call);
        let error = call.validate(&model()).unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
        assert!(error.message.contains(text), "{error} should name {text}");
    }
}

#[test]
fn context_frames_without_recompute_are_refused() {
    let mut first = call();
    (first.current_start_frame, first.do_kv_recompute, first.init_cache) = (0, false, true);
    first.expected_generator_calls = 2;
    assert_eq!(first.validate(&model()).unwrap_err().reason, Reason::BadField);
    first.tensors.pop();
    assert_eq!(first.validate(&model()), Ok(()));
    first.init_cache = false;
    assert!(first.validate(&model()).unwrap_err().message.contains("init_cache"));
}

#[test]
fn an_attention_bias_is_for_models_whose_cache_is_rebuilt_with_it() {
    let rolling = ModelInfo { recompute: false, name: "wan-1.3b".into(), ..model() };
    let with = |bias| Parameters { kv_cache_attention_bias: bias, ..Parameters::default() };
    let refused = rolling.check_parameters(&with(Some(0.3))).unwrap_err();
    assert_eq!(refused.reason, Reason::UnsupportedParameter);
    assert_eq!(refused.message, "kv_cache_attention_bias is 0.3: wan-1.3b allows 1 only");
    for allowed in [with(Some(1.0)), with(None)] {
        rolling.check_parameters(&allowed).unwrap();
    }
    model().check_parameters(&with(Some(0.3))).unwrap();
}
