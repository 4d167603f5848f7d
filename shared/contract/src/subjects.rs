//! Every NATS subject. No other file of the product holds a subject literal.

use crate::ids::{CellId, Incarnation, InstanceId, MeshEpoch, Rank, SessionId};

/// Prefix of all subjects, with the version of the contract.
pub const ROOT: &str = "km.v1";
/// JetStream key-value bucket that holds `leader.{cell}`.
pub const LEADER_BUCKET: &str = "kinemesh_leaders";
/// JetStream key-value bucket that holds what sessions need to go on elsewhere.
pub const CONTINUATION_BUCKET: &str = "kinemesh_sessions";

#[must_use]
pub fn session_create(cell: &CellId) -> String {
    format!("{ROOT}.cell.{cell}.session.create")
}

#[must_use]
pub fn session_params(session: SessionId) -> String {
    format!("{ROOT}.session.{session}.params")
}

#[must_use]
pub fn session_control(session: SessionId) -> String {
    format!("{ROOT}.session.{session}.control")
}

#[must_use]
pub fn media_out(session: SessionId) -> String {
    format!("{ROOT}.session.{session}.media.out")
}

#[must_use]
pub fn session_event(session: SessionId) -> String {
    format!("{ROOT}.session.{session}.event")
}

#[must_use]
pub fn mesh_call(cell: &CellId, epoch: MeshEpoch) -> String {
    format!("{ROOT}.cell.{cell}.e{epoch}.mesh.call")
}

#[must_use]
pub fn tp_join(cell: &CellId) -> String {
    format!("{ROOT}.cell.{cell}.tp.join")
}

#[must_use]
pub fn tp_plan(cell: &CellId, epoch: MeshEpoch, rank: Rank) -> String {
    tp_rank(cell, epoch, rank, "plan")
}

#[must_use]
pub fn tp_go(cell: &CellId, epoch: MeshEpoch, rank: Rank) -> String {
    tp_rank(cell, epoch, rank, "go")
}

#[must_use]
pub fn tp_cancel(cell: &CellId, epoch: MeshEpoch, rank: Rank) -> String {
    tp_rank(cell, epoch, rank, "cancel")
}

fn tp_rank(cell: &CellId, epoch: MeshEpoch, rank: Rank, verb: &str) -> String {
    format!("{ROOT}.cell.{cell}.e{epoch}.tp.{rank}.{verb}")
}

#[must_use]
pub fn tp_noop(cell: &CellId, epoch: MeshEpoch) -> String {
    format!("{ROOT}.cell.{cell}.e{epoch}.tp.noop")
}

#[must_use]
pub fn tp_shutdown(cell: &CellId, epoch: MeshEpoch) -> String {
    format!("{ROOT}.cell.{cell}.e{epoch}.tp.shutdown")
}

#[must_use]
pub fn cell_status(cell: &CellId) -> String {
    format!("{ROOT}.cell.{cell}.status")
}

/// Where one process says that it is there.
#[must_use]
pub fn presence(cell: &CellId, instance: InstanceId) -> String {
    format!("{ROOT}.cell.{cell}.presence.{instance}")
}

/// Where one process tells what its flight recorder holds.
#[must_use]
pub fn recorder(cell: &CellId, instance: InstanceId) -> String {
    format!("{ROOT}.cell.{cell}.recorder.{instance}")
}

/// What an operator may ask of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ops {
    Status,
    Reset,
    Drain,
    Shutdown,
}

impl Ops {
    pub const ALL: [Self; 4] = [Self::Status, Self::Reset, Self::Drain, Self::Shutdown];

    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Reset => "reset",
            Self::Drain => "drain",
            Self::Shutdown => "shutdown",
        }
    }
}

#[must_use]
pub fn ops(cell: &CellId, verb: Ops) -> String {
    format!("{ROOT}.ops.{cell}.{}", verb.verb())
}

/// Key of the leader's claim in [`LEADER_BUCKET`].
#[must_use]
pub fn leader_key(cell: &CellId) -> String {
    format!("leader.{cell}")
}

/// Key of a session's [`crate::continuation::ContinuationHead`] in [`CONTINUATION_BUCKET`].
#[must_use]
pub fn continuation_head(session: SessionId) -> String {
    format!("session.{session}")
}

/// Key of one part of a state that life `incarnation` of the session wrote.
#[must_use]
pub fn continuation_part(session: SessionId, incarnation: Incarnation, set: u8, part: u32) -> String {
    format!("session.{session}.{incarnation}.{set}.{part}")
}
