//! What every process publishes on `cell.{cell}.status`, 2 Hz. Readiness is learned from here, never asked for.

use serde::{Deserialize, Serialize};

use crate::envelope::MeshPhase;
use crate::event::ChunkTimings;
use crate::ids::{CallId, CellId, InstanceId, LeaseEpoch, MeshEpoch, Rank, WorldSize};
use crate::model::ModelInfo;

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
    /// Leader and workers.
    pub mesh: Option<MeshStatus>,
    /// stage0.
    pub stage0: Option<Stage0Status>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeshStatus {
    pub rank: Option<Rank>,
    pub world_size: WorldSize,
    pub phase: MeshPhase,
    pub epoch: Option<MeshEpoch>,
    pub lease: Option<LeaseEpoch>,
    pub running: Option<CallId>,
    pub last_fault: Option<String>,
    /// Milliseconds of the last generator run on this rank.
    pub last_chunk_ms: Option<f32>,
    /// Leader only, once the model is known.
    pub model: Option<ModelInfo>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage0Status {
    pub model: ModelInfo,
    pub sessions: u32,
    pub capacity: u32,
    pub lease: Option<LeaseEpoch>,
    pub last_chunk: Option<ChunkTimings>,
    pub fps: Option<f32>,
}
