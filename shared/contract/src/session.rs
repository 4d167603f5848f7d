//! Session life between gateway and stage0.

use serde::{Deserialize, Serialize};

use crate::event::SessionState;
use crate::ids::{ChunkIndex, Digest, Incarnation, SessionId};
use crate::media::VideoCodec;
use crate::model::Size;
use crate::params::Parameters;

/// gateway → stage0 on `cell.{cell}.session.create`. A session that lived before goes on from its stored state, if there is
/// one; a life of it that still runs here is ended without a word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateSession {
    pub version: u16,
    pub session: SessionId,
    /// The least that this life may have; an earlier life that is on record raises it.
    pub incarnation: Incarnation,
    /// Digest of the session's resume token: equal in all its lives.
    pub resume: Digest,
    /// Absent: the cell's default size.
    pub size: Option<Size>,
    pub codec: VideoCodec,
    pub bitrate_kbps: u32,
    /// All that was acknowledged so far; what a stored state says otherwise gives way.
    pub parameters: Parameters,
    /// Highest update number that `parameters` contain.
    pub update: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCreated {
    pub session: SessionId,
    pub incarnation: Incarnation,
    pub size: Size,
}

/// gateway → stage0 on `session.{sid}.params`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateParameters {
    pub version: u16,
    pub parameters: Parameters,
}

/// Accepted, and applied by the chunk that starts next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParametersAccepted {
    /// Numbers the updates of a session; an `applied` event names the highest it contains.
    pub update: u64,
}

/// gateway → stage0 on `session.{sid}.control`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    Close {
        reason: String,
    },
    /// Hard cut: the next chunk is the first of a new history.
    Reset,
    Pause {
        paused: bool,
    },
    /// The next access unit is a keyframe.
    Keyframe,
    Bitrate {
        kbps: u32,
    },
    /// Someone is watching. The claim ages, so it is repeated every few seconds: a gateway that died takes its viewers with
    /// it. A session without one for 10 s pauses, after 60 s it ends.
    Viewer,
    /// The latest decoded frame as JPEG.
    Frame {
        quality: u8,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlReply {
    Done,
    /// To [`Control::Viewer`]: what the session does now. Events that were lost with a connection are made up for by this.
    Watching {
        incarnation: Incarnation,
        state: SessionState,
    },
    Frame {
        #[serde(with = "serde_bytes")]
        jpeg: Vec<u8>,
        chunk_index: ChunkIndex,
    },
}
