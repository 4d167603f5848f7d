//! What a session tells its gateway, and so its viewers, on `session.{sid}.event`.

use serde::{Deserialize, Serialize};

use crate::envelope::MeshTimings;
use crate::error::ClientError;
use crate::ids::{CacheEpoch, ChunkIndex, Incarnation, MeshEpoch, SessionId};
use crate::params::Parameters;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionEvent {
    pub session: SessionId,
    pub incarnation: Incarnation,
    pub event: Event,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    State {
        state: SessionState,
        error: Option<ClientError>,
    },
    /// The first word of a life that is not the session's first.
    Continued {
        /// The chunk that comes next.
        chunk_index: ChunkIndex,
        cache_epoch: CacheEpoch,
        /// Whether the history goes on; otherwise there was no state to go on from, and another one begins.
        restored: bool,
    },
    /// Something was refused or failed; the session goes on.
    Error {
        error: ClientError,
    },
    /// A chunk started with these parameters.
    Applied {
        /// Highest update number merged into it.
        update: u64,
        chunk_index: ChunkIndex,
        cache_epoch: CacheEpoch,
        /// Only what changed at this chunk.
        changed: Box<Parameters>,
        transition_active: bool,
    },
    /// A chunk is complete and on its way out.
    Chunk(Box<ChunkReport>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    Starting,
    Streaming,
    Paused,
    Recovering,
    Ended,
}

impl SessionState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Streaming => "streaming",
            Self::Paused => "paused",
            Self::Recovering => "recovering",
            Self::Ended => "ended",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChunkReport {
    pub chunk_index: ChunkIndex,
    pub cache_epoch: CacheEpoch,
    pub mesh_epoch: MeshEpoch,
    /// Video frames in the chunk: 9 for the first of a history, then 12.
    pub frames: u32,
    /// Frames a second, measured over the last chunks.
    pub fps: f32,
    /// Frames dropped since the session began, because the output queue was full.
    pub dropped_frames: u64,
    /// Identity of the chunk's latents, equal for equal histories.
    pub latents: crate::ids::Digest,
    pub timings: ChunkTimings,
}

/// Microseconds of each phase of a chunk at stage0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkTimings {
    /// Prompt encoding and blending.
    pub text_us: u64,
    /// Noise, envelope, preflight.
    pub envelope_us: u64,
    /// Writing to and reading from the link.
    pub link_us: u64,
    /// Request sent until reply received.
    pub call_us: u64,
    /// First latent decoded and its context re-encoded: on the critical path.
    pub decode_head_us: u64,
    pub decode_rest_us: u64,
    /// All frames of the chunk compressed.
    pub encode_us: u64,
    /// Start of a chunk to start of the next.
    pub chunk_us: u64,
    /// Newest parameter update's arrival to the first packet of the chunk that used it; 0 if there was none.
    pub parameter_to_packet_us: u64,
    pub mesh: MeshTimings,
}
