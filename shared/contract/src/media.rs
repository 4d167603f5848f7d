//! Compressed video on its way from stage0 to the gateway.

use serde::{Deserialize, Serialize};

use crate::ids::{CacheEpoch, ChunkIndex, Incarnation, SessionId};
use crate::model::Size;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VideoCodec {
    /// Constrained baseline, Annex B, packetization-mode 1.
    H264,
    Vp8,
}

impl VideoCodec {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::H264 => "h264",
            Self::Vp8 => "vp8",
        }
    }
}

/// Data bytes in one part; leaves room for the fields within the payload limit.
pub const MAX_PART: usize = 240 * 1024;

/// One access unit, or part of one, on `session.{sid}.media.out`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaPart {
    pub session: SessionId,
    pub incarnation: Incarnation,
    /// Number of the access unit within the incarnation, without gaps.
    pub sequence: u64,
    pub part: u16,
    pub parts: u16,
    pub codec: VideoCodec,
    pub keyframe: bool,
    /// Presentation time on the 90 kHz clock, monotonic within the incarnation.
    pub timestamp: u64,
    pub size: Size,
    pub cache_epoch: CacheEpoch,
    pub chunk_index: ChunkIndex,
    /// Position of the frame within its chunk.
    pub frame: u16,
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}
