//! Inside the mesh: joining, plan, go and cancel between leader and workers, and the beats of the liveness socket.

use serde::{Deserialize, Serialize};

use crate::envelope::MeshPhase;
use crate::ids::{CacheEpoch, CallId, Digest, InstanceId, MeshEpoch, Rank, SessionSlot, WorldSize};
use crate::model::{Size, TpPlan};
use crate::tensor::Dtype;

/// worker → leader, repeated until assigned or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    pub version: u16,
    pub instance: InstanceId,
    pub parity: Parity,
    /// Rank and world size of the shard this worker already holds, if it survived an earlier epoch.
    pub holds: Option<(Rank, WorldSize)>,
}

/// What all ranks must agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parity {
    /// Version and commit of the binaries.
    pub build: String,
    pub model_fingerprint: String,
    pub dtype: Dtype,
    /// `cpu`, `cuda`.
    pub device: String,
    /// The implementations of attention and elementwise work in effect, not those asked for.
    pub attention_backend: String,
    /// Absent unless an operator chose one: a default is never compared with a choice.
    pub tp_plan: Option<ChosenPlan>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChosenPlan {
    pub plan: TpPlan,
    /// Where the choice was made: an environment key, or a file.
    pub set_by: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinReply {
    /// Ranks are missing: ask again.
    Waiting {
        joined: u32,
        world_size: WorldSize,
    },
    Assigned(Assignment),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub mesh_epoch: MeshEpoch,
    pub rank: Rank,
    pub world_size: WorldSize,
    pub tp_plan: TpPlan,
    /// The rendezvous of the collective: an NCCL unique id, or the loopback's.
    #[serde(with = "serde_bytes")]
    pub collective: Vec<u8>,
    /// `host:port` of the leader's liveness socket.
    pub liveness: String,
}

/// What every rank runs in lockstep. Derived from the envelope; carries no tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub mesh_epoch: MeshEpoch,
    pub plan_id: PlanId,
    pub slot: SessionSlot,
    pub cache_epoch: CacheEpoch,
    pub size: Size,
    pub current_start_frame: u64,
    pub num_latent_frames: u32,
    pub denoising_steps: Vec<u32>,
    pub do_kv_recompute: bool,
    pub init_cache: bool,
    pub reset_kv_cache: bool,
    pub reset_crossattn_cache: bool,
    pub base_seed: u64,
    pub kv_cache_attention_bias: f32,
    pub expected_generator_calls: u32,
    pub conditioning: Digest,
    /// Whether the conditioning tensor is broadcast with this call.
    pub conditioning_follows: bool,
}

impl Plan {
    /// # Errors
    /// `internal` if it cannot be encoded.
    pub fn digest(&self) -> Result<Digest, crate::Error> {
        Ok(Digest::of(&[&crate::codec::encode(self)?]))
    }
}

/// Names one lockstep run within a mesh epoch. The leader's own counter, since warm-up and canary runs have no
/// controller's call id and a new lease starts its call ids again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanId(pub u64);

/// leader → worker on `tp.{rank}.plan`. Idempotent by (epoch, plan id).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanRequest {
    pub version: u16,
    pub plan: Plan,
    pub digest: Digest,
}

/// Acknowledges plan, go and cancel alike; a nack is an error reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    pub rank: Rank,
    pub plan_id: PlanId,
}

/// leader → worker on `tp.{rank}.go` and `tp.{rank}.cancel`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRef {
    pub mesh_epoch: MeshEpoch,
    pub plan_id: PlanId,
    pub digest: Digest,
    /// Milliseconds the run has left when sent; the message itself has a shorter budget, since it is sent again.
    pub budget_ms: u64,
}

/// leader → workers on `tp.noop`: the relayed keepalive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpNoop {
    pub mesh_epoch: MeshEpoch,
    pub controller_call: Option<CallId>,
}

/// leader → workers on `tp.shutdown`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpShutdown {
    pub mesh_epoch: MeshEpoch,
    pub reason: String,
}

/// Both ways on the liveness socket, 5 Hz, each preceded by its length as a big-endian `u16`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    pub mesh_epoch: MeshEpoch,
    pub rank: Rank,
    pub instance: InstanceId,
    pub phase: MeshPhase,
    /// Milliseconds the sender has been busy with its current call.
    pub busy_ms: Option<u64>,
    /// The sender leaves on its own will after its running call.
    pub leaving: bool,
    /// Why the sender is `faulted`, if it is.
    pub fault: Option<String>,
}
