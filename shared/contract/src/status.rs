//! What every process publishes on `cell.{cell}.status`, 2 Hz. Readiness is learned from here, never asked for.

use serde::{Deserialize, Serialize};

use crate::envelope::MeshPhase;
use crate::event::ChunkTimings;
use crate::ids::{CallId, CellId, InstanceId, LeaseEpoch, MeshEpoch, Rank, WorldSize};
use crate::model::ModelInfo;
use crate::ops::SessionReport;
use crate::tp::PlanId;

/// A process that was silent for this long is gone or stopped.
pub const STATUS_TIMEOUT_MS: u64 = 1500;
/// Status messages are this far apart.
pub const STATUS_INTERVAL_MS: u64 = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Gateway,
    Stage0,
    MeshLeader,
    TpWorker,
}

impl Role {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Stage0 => "stage0",
            Self::MeshLeader => "mesh-leader",
            Self::TpWorker => "tp-worker",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessStatus {
    pub version: u16,
    pub cell: CellId,
    pub role: Role,
    pub instance: InstanceId,
    pub build: String,
    pub ready: bool,
    /// What a process that is not ready waits for: `broker`, `loading`, `warming 2/3`, `workers 0/1`.
    pub waiting_for: Option<String>,
    pub draining: bool,
    pub uptime_ms: u64,
    /// Process id on its host.
    pub pid: u32,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Leader and workers.
    pub mesh: Option<MeshStatus>,
    /// stage0.
    pub stage0: Option<Stage0Status>,
}

/// How long the last runs of one kind took, in milliseconds; only runs that ended well.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunTimes {
    /// Runs measured: the last 128 at most.
    pub count: u32,
    pub last_ms: f32,
    pub p50_ms: f32,
    pub p99_ms: f32,
}

/// What went wrong last, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Class, reason and text.
    pub what: String,
    /// Milliseconds since, when this was sent.
    pub age_ms: u64,
}

/// A peer on the liveness socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeatAge {
    pub rank: Rank,
    /// Milliseconds since its last beat, when this was sent.
    pub age_ms: u64,
}

/// One rank of the mesh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeshStatus {
    /// Absent while a worker has none.
    pub rank: Option<Rank>,
    pub world_size: WorldSize,
    pub phase: MeshPhase,
    pub epoch: Option<MeshEpoch>,
    /// Leader only: the lease in force, and the stage0 that holds it.
    pub lease: Option<LeaseEpoch>,
    pub lease_holder: Option<InstanceId>,
    /// Leader only: the call that runs, and the highest id seen under the lease.
    pub running: Option<CallId>,
    pub last_call: Option<CallId>,
    /// The lockstep run that this rank is in, and the last one it began.
    pub running_plan: Option<PlanId>,
    pub last_plan: Option<PlanId>,
    /// Why the last epoch ended.
    pub last_fault: Option<Fault>,
    /// Generator runs on this rank, warm-up included.
    pub chunks: Option<RunTimes>,
    /// Who is heard on the liveness socket: each worker at the leader, the leader at a worker.
    pub beats: Vec<BeatAge>,
    /// Leader only, once the model is known.
    pub model: Option<ModelInfo>,
}

/// The tensor link, as stage0 sees its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// There is none without a lease, nor before its two ends have met.
    Closed,
    Open,
    /// A call went unanswered: its slots wait until the leader says that it is over.
    Quarantined,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage0Status {
    pub model: ModelInfo,
    pub sessions: u32,
    pub capacity: u32,
    pub lease: Option<LeaseEpoch>,
    pub link: LinkState,
    /// The INFER that runs, and the last one sent under the lease.
    pub running: Option<CallId>,
    pub last_call: Option<CallId>,
    /// Calls, request to reply.
    pub calls: Option<RunTimes>,
    /// The chunk watchdog: how long the next call may take, which `calls` decides.
    pub call_budget_ms: u64,
    /// The last call that failed, or why the lease was lost.
    pub last_fault: Option<Fault>,
    pub last_chunk: Option<ChunkTimings>,
    pub fps: Option<f32>,
    /// The sessions themselves, as many as `capacity` at most. An operator's report has them in a place of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<SessionReport>,
}
