//! Access units as messages.

use contract::ids::{CacheEpoch, ChunkIndex, Incarnation, SessionId};
use contract::media::{MAX_PART, MediaPart, VideoCodec};
use contract::model::Size;
use video::AccessUnit;

/// Which session an access unit belongs to, and how it is coded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub session: SessionId,
    pub incarnation: Incarnation,
    pub codec: VideoCodec,
    pub size: Size,
}

/// Which frame of the session it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub cache_epoch: CacheEpoch,
    pub chunk_index: ChunkIndex,
    /// Position within the chunk.
    pub frame: u16,
}

/// Cuts an access unit into parts that fit into messages.
pub(crate) fn parts(
    stream: &Stream,
    tag: Tag,
    sequence: u64,
    timestamp: u64,
    unit: &AccessUnit,
) -> Vec<MediaPart> {
    let count = unit.data.len().div_ceil(MAX_PART).max(1);
    let number = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let mut slices = unit.data.chunks(MAX_PART);
    (0..count)
        .map(|part| MediaPart {
            session: stream.session,
            incarnation: stream.incarnation,
            sequence,
            part: number(part),
            parts: number(count),
            codec: stream.codec,
            keyframe: unit.keyframe,
            timestamp,
            size: stream.size,
            cache_epoch: tag.cache_epoch,
            chunk_index: tag.chunk_index,
            frame: tag.frame,
            data: slices.next().unwrap_or_default().to_vec(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use contract::codec::MAX_PAYLOAD;

    use super::*;

    fn cut(len: usize) -> Vec<MediaPart> {
        let stream = Stream {
            session: SessionId::random(),
            incarnation: Incarnation(u64::MAX),
            codec: VideoCodec::H264,
            size: Size { width: 4096, height: 4096 },
        };
        let tag =
            Tag { cache_epoch: CacheEpoch(u64::MAX), chunk_index: ChunkIndex(u64::MAX), frame: u16::MAX };
        let data = (0..len).map(|n| n as u8).collect();
        parts(&stream, tag, u64::MAX, u64::MAX, &AccessUnit { keyframe: true, data })
    }

    #[test]
    fn parts_put_together_are_the_access_unit() {
        for (len, count) in [(0, 1), (1, 1), (MAX_PART, 1), (MAX_PART + 1, 2), (3 * MAX_PART, 3)] {
            let parts = cut(len);
            assert_eq!(parts.len(), count);
            let numbers: Vec<_> = parts.iter().map(|part| (part.part, part.parts)).collect();
            assert_eq!(numbers, (0..count as u16).map(|n| (n, count as u16)).collect::<Vec<_>>());
            let data: Vec<u8> = parts.into_iter().flat_map(|part| part.data).collect();
            assert!(data.len() == len && data.iter().enumerate().all(|(n, byte)| *byte == n as u8));
        }
    }

    #[test]
    fn a_full_part_fits_into_a_message() {
        assert!(contract::codec::encode(&cut(MAX_PART)[0]).unwrap().len() <= MAX_PAYLOAD);
    }
}
