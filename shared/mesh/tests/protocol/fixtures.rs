//! What the tests of the protocol talk about: one tiny model, its calls, and the parts' configurations.

use std::time::Duration;

use contract::envelope::{Infer, MeshTimings, ResultV1};
use contract::link::{LinkDescriptor, LinkKind};
use contract::model::{ModelInfo, Size, TpPlan};
use contract::tensor::{Dtype, TensorKey, TensorSpec};
use contract::tp::Parity;
use contract::{
    CONTRACT_VERSION, CacheEpoch, CallId, ChunkIndex, Digest, Generation, InstanceId, LinkSlot, MeshEpoch,
    SessionId, SessionSlot, WorldSize,
};
use mesh::Timing;
use mesh::leader::{LeaderConfig, RunReport};
use mesh::worker::WorkerConfig;

pub(crate) const SIZE: Size = Size { width: 128, height: 128 };

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) fn model() -> ModelInfo {
    ModelInfo {
        name: "tiny".into(),
        fingerprint: "aa".into(),
        sizes: vec![SIZE],
        dtype: Dtype::F32,
        latent_channels: 16,
        spatial_stride: 8,
        frames_per_chunk: 3,
        context_frames: 3,
        text_len: 64,
        text_dim: 64,
        recompute: true,
        extra_calls: 0,
        default_steps: vec![1000, 500],
        default_attention_bias: 0.3,
        world_sizes: vec![WorldSize::ONE],
        examples: Vec::new(),
    }
}

pub(crate) fn parity() -> Parity {
    Parity {
        build: "0.1.0".into(),
        model_fingerprint: "aa".into(),
        dtype: Dtype::F32,
        device: "cpu".into(),
        attention_backend: "eager".into(),
        tp_plan: None,
    }
}

pub(crate) fn world(n: u32) -> WorldSize {
    WorldSize::try_from(n).unwrap()
}

pub(crate) fn leader_config(ranks: u32) -> LeaderConfig {
    LeaderConfig {
        instance: InstanceId::random(),
        parity: parity(),
        tp_plan: TpPlan::V1GeneratorOnly,
        world_size: world(ranks),
        session_slots: 2,
        model: model(),
        conditionings: 4,
        warm_up_chunks: 3,
        timing: Timing::default(),
    }
}

pub(crate) fn worker_config() -> WorkerConfig {
    WorkerConfig {
        instance: InstanceId::random(),
        parity: parity(),
        session_slots: 2,
        model: model(),
        conditionings: 4,
        timing: Timing::default(),
    }
}

pub(crate) fn spec(key: TensorKey, shape: &[i64]) -> TensorSpec {
    TensorSpec {
        key,
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        slot: LinkSlot(0),
        byte_offset: 0,
        byte_len: shape.iter().product::<i64>().unsigned_abs() * 4,
        generation: Generation(1),
    }
}

/// Chunk `index` of a session on slot 0, as stage0 would ask for it.
pub(crate) fn infer(session: SessionId, cache_epoch: u64, index: u64) -> Infer {
    let model = model();
    let latents = model.latent_shape(SIZE, 3);
    let recompute = index > 0;
    let mut tensors = vec![
        spec(TensorKey::LatentsIn, &latents),
        spec(TensorKey::ConditioningEmbeds, &model.conditioning_shape()),
    ];
    if recompute {
        tensors.push(spec(TensorKey::ContextFrames, &latents));
    }
    Infer {
        session,
        session_slot: SessionSlot(0),
        chunk_index: ChunkIndex(index),
        cache_epoch: CacheEpoch(cache_epoch),
        size: SIZE,
        current_start_frame: index * 3,
        num_latent_frames: 3,
        denoising_steps: vec![1000, 500],
        do_kv_recompute: recompute,
        init_cache: index == 0,
        reset_kv_cache: false,
        reset_crossattn_cache: false,
        base_seed: 1,
        kv_cache_attention_bias: 0.3,
        noise_scale: None,
        tp_plan: None,
        expected_generator_calls: model.expected_calls(2, recompute),
        conditioning: Digest::of(&[b"prompt"]),
        tensors,
    }
}

pub(crate) fn link() -> LinkDescriptor {
    LinkDescriptor {
        kind: LinkKind::Shm,
        name: "x".into(),
        slots_in: 4,
        slots_out: 4,
        slot_bytes: 1 << 20,
        link_epoch: 1,
        meeting: None,
    }
}

pub(crate) fn report(calls: u32) -> RunReport {
    RunReport {
        least_calls: calls,
        most_calls: calls,
        digests_agree: true,
        digest: Digest::of(&[b"latents"]),
        timings: MeshTimings::default(),
        latents_out: Ok(Some(spec(TensorKey::LatentsOut, &model().latent_shape(SIZE, 3)))),
    }
}

/// What the mesh answers to `infer` when all is well.
pub(crate) fn result(call_id: CallId, mesh_epoch: MeshEpoch, infer: &Infer) -> ResultV1 {
    ResultV1 {
        version: CONTRACT_VERSION,
        call_id,
        session: infer.session,
        chunk_index: infer.chunk_index,
        cache_epoch: infer.cache_epoch,
        mesh_epoch,
        observed_generator_calls: infer.expected_generator_calls,
        mesh_current_start_frame: infer.current_start_frame + u64::from(infer.num_latent_frames),
        timings: MeshTimings::default(),
        output_digest: None,
        latents_out: spec(TensorKey::LatentsOut, &[1]),
    }
}
