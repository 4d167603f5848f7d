//! What operators ask and hear, as JSON, so that any NATS client will do.

use serde::{Deserialize, Serialize};

use crate::ids::{CellId, SessionId};
use crate::status::ProcessStatus;

/// Body of `ops.{cell}.reset`; an empty body resets every session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetRequest {
    pub session: Option<SessionId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpsAccepted {
    /// What will happen, in a sentence.
    pub will: String,
    pub sessions: Vec<SessionId>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellReport {
    pub cell: CellId,
    pub ready: bool,
    pub waiting_for: Option<String>,
    pub processes: Vec<ProcessStatus>,
    pub sessions: Vec<SessionReport>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionReport {
    pub session: SessionId,
    pub incarnation: u64,
    pub state: crate::event::SessionState,
    pub chunk_index: u64,
    pub cache_epoch: u64,
    pub fps: f32,
}
