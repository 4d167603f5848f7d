//! What operators ask and hear, as JSON, so that any NATS client will do. An empty body stands for `{}`; a field that is
//! not known is refused by name.

use serde::{Deserialize, Serialize};

use crate::ids::{CellId, InstanceId, SessionId};
use crate::recording::Recording;
use crate::status::{ProcessStatus, Role};

/// Body of `ops.{cell}.status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StatusRequest {
    /// Whether each process is asked for the newest events of its flight recorder.
    pub recorder: bool,
}

/// Body of `ops.{cell}.reset`; an empty one resets every session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetRequest {
    pub session: Option<SessionId>,
}

/// Body of `ops.{cell}.drain` and `ops.{cell}.shutdown`: nothing to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {}

/// What will happen. `drain` and `shutdown` answer the same however often they are asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpsAccepted {
    /// What will happen, in a sentence.
    pub will: String,
    /// The stage0 that does it.
    pub instance: InstanceId,
    /// The sessions that it happens to, as it was first asked.
    pub sessions: Vec<SessionId>,
    /// It is done so long after it was first asked, at the latest.
    pub within_ms: u64,
    /// How to see that it is done, in a sentence.
    pub done_when: String,
}

/// The answer to `ops.{cell}.status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellReport {
    pub cell: CellId,
    pub answered_by: Observer,
    /// Whether the cell takes sessions, and what it waits for if not.
    pub ready: bool,
    pub waiting_for: Option<String>,
    /// stage0 takes no more sessions; it is gone when those listed are.
    pub draining: bool,
    pub processes: Vec<ProcessReport>,
    /// As stage0 told them last; `age_ms` of its process says when.
    pub sessions: Vec<SessionReport>,
}

/// Who answers, from what it has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observer {
    pub role: Role,
    pub instance: InstanceId,
    /// Milliseconds that it has listened: what it counts begins there.
    pub observing_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    Ready,
    /// Not ready; `waiting_for` says why.
    Waiting,
    Draining,
    /// Not heard for [`crate::status::STATUS_TIMEOUT_MS`]: dead, stopped, or cut off. Listed until another instance has
    /// its place, or for ten minutes.
    Silent,
}

/// A process as it told itself, and what whoever answers knows beside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessReport {
    pub state: ProcessState,
    /// Milliseconds since its last status, of which everything below is.
    pub age_ms: u64,
    /// Instances of the same role (and rank, for workers) that whoever answers heard before this one, since it began to
    /// listen. A worker without a rank has none.
    pub restarts: u32,
    #[serde(flatten)]
    pub status: ProcessStatus,
    /// Only if asked for, of a process that keeps a recorder and answered in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorder: Option<Recording>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_is_not_known_is_refused_by_name() {
        let stop = serde_json::from_str::<StopRequest>(r#"{"force": true}"#).unwrap_err().to_string();
        assert!(stop.contains("`force`"), "{stop}");
        let status = serde_json::from_str::<StatusRequest>(r#"{"recorders": true}"#).unwrap_err().to_string();
        assert!(status.contains("`recorders`") && status.contains("`recorder`"), "{status}");
        let reset = serde_json::from_str::<ResetRequest>(r#"{"sesion": null}"#).unwrap_err().to_string();
        assert!(reset.contains("`sesion`") && reset.contains("`session`"), "{reset}");
    }
}
