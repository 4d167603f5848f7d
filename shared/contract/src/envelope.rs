//! The stage boundary: what stage0 asks of the mesh leader, and what it gets back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::CONTRACT_VERSION;
use crate::error::{Error, Reason};
use crate::ids::{
    CacheEpoch, CallId, ChunkIndex, Digest, InstanceId, LeaseEpoch, MeshEpoch, SessionId, SessionSlot,
    WorldSize,
};
use crate::link::LinkDescriptor;
use crate::model::{ModelInfo, Size, TpPlan, check_steps};
use crate::tensor::{TensorKey, TensorSpec};

/// The right of one controller to command the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    pub controller: InstanceId,
    pub epoch: LeaseEpoch,
}

/// stage0 → leader. The reply is a [`Reply`], or an error in ADR-32 headers and body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnvelopeV1 {
    pub version: u16,
    pub call_id: CallId,
    pub mesh_epoch: MeshEpoch,
    pub controller: InstanceId,
    /// Absent only in HELLO.
    pub lease: Option<LeaseEpoch>,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Asks for the lease and a link.
    Hello,
    Infer(Box<Infer>),
    /// Keepalive: renews the lease, answers with the mesh's state.
    Noop,
    /// The session's slot is dirty: its next INFER must carry `init_cache`.
    Reset {
        slot: SessionSlot,
    },
    /// Aborts the running call and stops the mesh; ops only.
    Shutdown {
        reason: String,
    },
    /// Releases the lease.
    Bye,
}

impl Action {
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Infer(_) => "infer",
            Self::Noop => "noop",
            Self::Reset { .. } => "reset",
            Self::Shutdown { .. } => "shutdown",
            Self::Bye => "bye",
        }
    }
}

/// One chunk to generate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Infer {
    pub session: SessionId,
    pub session_slot: SessionSlot,
    pub chunk_index: ChunkIndex,
    pub cache_epoch: CacheEpoch,
    pub size: Size,
    /// Latent frames generated before this chunk in this history.
    pub current_start_frame: u64,
    pub num_latent_frames: u32,
    pub denoising_steps: Vec<u32>,
    pub do_kv_recompute: bool,
    /// Clears this session's KV slot on the mesh, nothing else.
    pub init_cache: bool,
    pub reset_kv_cache: bool,
    pub reset_crossattn_cache: bool,
    pub base_seed: u64,
    /// 0.01 to 1; 1 switches the bias off.
    pub kv_cache_attention_bias: f32,
    /// 0 to 1; only with video input.
    pub noise_scale: Option<f32>,
    /// Only if an operator set it.
    pub tp_plan: Option<TpPlan>,
    pub expected_generator_calls: u32,
    /// Identity of the conditioning embedding; the tensor is present when the mesh does not hold it.
    pub conditioning: Digest,
    pub tensors: Vec<TensorSpec>,
}

impl EnvelopeV1 {
    /// # Errors
    /// `unsupported_version`, naming both.
    pub fn check_version(&self) -> Result<(), Error> {
        if self.version != CONTRACT_VERSION {
            return Err(Error::new(
                Reason::UnsupportedVersion,
                format!("envelope version {}: {CONTRACT_VERSION} is spoken here", self.version),
            ));
        }
        Ok(())
    }
}

impl Infer {
    #[must_use]
    pub fn tensor(&self, key: TensorKey) -> Option<&TensorSpec> {
        self.tensors.iter().find(|spec| spec.key == key)
    }

    /// Preflight at stage0 and admission at the leader are this one check.
    ///
    /// # Errors
    /// The first thing wrong with the call, naming the value and what is allowed.
    pub fn validate(&self, model: &ModelInfo) -> Result<(), Error> {
        model.check_size(self.size)?;
        check_steps(&self.denoising_steps)?;
        self.check_scalars(model)?;
        self.check_tensors(model)
    }

    fn check_scalars(&self, model: &ModelInfo) -> Result<(), Error> {
        let bad = |text: String| Err(Error::new(Reason::BadField, text));
        if self.num_latent_frames != model.frames_per_chunk {
            let (got, want) = (self.num_latent_frames, model.frames_per_chunk);
            return bad(format!("num_latent_frames is {got}: {want} is expected"));
        }
        let bias = self.kv_cache_attention_bias;
        if !(0.01..=1.0).contains(&bias) {
            return bad(format!("kv_cache_attention_bias is {bias}: 0.01 to 1 is allowed"));
        }
        if let Some(scale) = self.noise_scale
            && !(0.0..=1.0).contains(&scale)
        {
            return bad(format!("noise_scale is {scale}: 0 to 1 is allowed"));
        }
        if self.noise_scale.is_some() {
            return Err(Error::new(
                Reason::UnsupportedParameter,
                "noise_scale: video input is not built, only text input is served",
            ));
        }
        let starts = self.current_start_frame == 0;
        let recompute = model.recompute && !starts;
        if self.do_kv_recompute != recompute {
            return bad(format!(
                "do_kv_recompute is {} at start frame {}: {recompute} is expected for {}",
                self.do_kv_recompute, self.current_start_frame, model.name
            ));
        }
        if starts && !self.init_cache {
            return bad("init_cache is false at start frame 0: a new history clears its slot".to_owned());
        }
        let calls = model.expected_calls(self.denoising_steps.len(), self.do_kv_recompute);
        if self.expected_generator_calls != calls {
            return Err(Error::new(
                Reason::CallCount,
                format!(
                    "expected_generator_calls is {}: the plan implies {calls}",
                    self.expected_generator_calls
                ),
            ));
        }
        Ok(())
    }

    fn check_tensors(&self, model: &ModelInfo) -> Result<(), Error> {
        let latents =
            self.tensor(TensorKey::LatentsIn).ok_or_else(|| missing(TensorKey::LatentsIn, "every call"))?;
        latents.expect(model.dtype, &model.latent_shape(self.size, self.num_latent_frames))?;
        if let Some(embeds) = self.tensor(TensorKey::ConditioningEmbeds) {
            embeds.expect(model.dtype, &model.conditioning_shape())?;
        }
        match (self.do_kv_recompute, self.tensor(TensorKey::ContextFrames)) {
            (true, None) => return Err(missing(TensorKey::ContextFrames, "a call with do_kv_recompute")),
            (true, Some(context)) => {
                context.expect(model.dtype, &model.latent_shape(self.size, model.context_frames))?;
            }
            (false, Some(_)) => {
                return Err(Error::new(
                    Reason::BadField,
                    "context_frames is present without do_kv_recompute: the mesh never guesses",
                ));
            }
            (false, None) => {}
        }
        for (at, spec) in self.tensors.iter().enumerate() {
            let repeated = self.tensors[..at].iter().any(|earlier| earlier.key == spec.key);
            if repeated || spec.key == TensorKey::LatentsOut {
                let key = spec.key.as_str();
                return Err(Error::new(
                    Reason::BadField,
                    format!("tensor {key} is not allowed here or repeated"),
                ));
            }
        }
        Ok(())
    }
}

fn missing(key: TensorKey, by: &str) -> Error {
    Error::new(Reason::MissingTensor, format!("{} is missing: {by} needs it", key.as_str()))
}

/// leader → stage0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Hello(Box<HelloReply>),
    Infer(Box<ResultV1>),
    Noop(MeshState),
    Reset,
    Shutdown,
    Bye,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HelloReply {
    pub version: u16,
    pub lease: LeaseEpoch,
    pub lease_ttl_ms: u64,
    pub link: LinkDescriptor,
    pub model: ModelInfo,
    pub world_size: WorldSize,
    /// KV slots the controller may use: `0..session_slots`.
    pub session_slots: u32,
}

/// What NOOP tells: enough to know whether a timed-out call is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshState {
    pub mesh_epoch: MeshEpoch,
    pub phase: MeshPhase,
    /// The call being executed, if any.
    pub running: Option<CallId>,
    /// The highest call id seen under this lease.
    pub last_call: Option<CallId>,
}

/// `Forming → Loading → Warming → Ready ⇄ Busy → Draining → Stopped`, and `Faulted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeshPhase {
    Forming,
    Loading,
    Warming,
    Ready,
    Busy,
    Draining,
    Stopped,
    Faulted,
}

impl MeshPhase {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forming => "forming",
            Self::Loading => "loading",
            Self::Warming => "warming",
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Faulted => "faulted",
        }
    }
}

/// The outcome of an INFER that ran; a refused or failed one is answered by an error instead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResultV1 {
    pub version: u16,
    pub call_id: CallId,
    pub session: SessionId,
    pub chunk_index: ChunkIndex,
    pub cache_epoch: CacheEpoch,
    pub mesh_epoch: MeshEpoch,
    pub observed_generator_calls: u32,
    pub mesh_current_start_frame: u64,
    pub timings: MeshTimings,
    pub output_digest: Option<Digest>,
    pub latents_out: TensorSpec,
}

/// Microseconds each phase of a call took at the leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshTimings {
    /// Plan sent until all acks.
    pub plan_us: u64,
    /// Go sent until all acks.
    pub go_us: u64,
    /// Reading the tensors from the link and broadcasting them.
    pub broadcast_us: u64,
    /// All generator forwards, recompute included.
    pub generator_us: u64,
    /// Count and digest comparison, and writing the result to the link.
    pub finish_us: u64,
}

impl MeshTimings {
    #[must_use]
    pub fn micros(duration: Duration) -> u64 {
        u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
    }
}
