use std::sync::atomic::{AtomicU32, Ordering};

use segment::Segment;

use super::stamp::Stamp;

/// Bytes of one piece of a tensor. One 192x128 f32 tensor (96 KiB) is one piece; larger tensors go in several.
pub(super) const PIECE_BYTES: usize = 256 * 1024;

pub(super) const MAX_WORLD: u32 = 64;

/// Two buffers a rank: while peers still read piece `n`, piece `n + 1` may be written. Nobody posts `n + 2` before
/// every rank has posted `n + 1`, which each does only after it has read `n`.
const BUFFERS: usize = 2;

const MAGIC: u64 = u64::from_le_bytes(*b"kmloop\0\x01");
const PAGE: usize = 4096;
const CACHE_LINE: usize = 64;

pub(super) const REASON_BYTES: usize = 512;

/// The segment, by the names of what lies in it:
///
/// ```text
/// page 0            magic, world size | poison state, reason length | reason
/// then a block for each rank:
///   page            posted | attached | bell | two stamps, a cache line each
///   2 x PIECE_BYTES the two buffers
/// ```
#[derive(Debug)]
pub(super) struct Layout {
    segment: Segment,
    world: u32,
}

impl Layout {
    const BLOCK: usize = PAGE + BUFFERS * PIECE_BYTES;

    pub(super) fn bytes(world: u32) -> usize {
        PAGE + world as usize * Self::BLOCK
    }

    pub(super) fn new(segment: Segment, world: u32) -> Self {
        Self { segment, world }
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    pub(super) fn world(&self) -> u32 {
        self.world
    }

    pub(super) fn ranks(&self) -> impl Iterator<Item = u32> + use<> {
        0..self.world
    }

    /// Marks zeroed memory as a group of this world size.
    pub(super) fn format(&self) {
        self.segment.u64_at(0).store(Self::mark(self.world), Ordering::Release);
    }

    pub(super) fn is_formatted(&self) -> bool {
        self.segment.u64_at(0).load(Ordering::Acquire) == Self::mark(self.world)
    }

    pub(super) fn into_segment(self) -> Segment {
        self.segment
    }

    fn mark(world: u32) -> u64 {
        MAGIC ^ (u64::from(world) << 48)
    }

    pub(super) fn poison(&self) -> &AtomicU32 {
        self.segment.u32_at(CACHE_LINE)
    }

    pub(super) fn reason_len(&self) -> &AtomicU32 {
        self.segment.u32_at(CACHE_LINE + 4)
    }

    /// [`REASON_BYTES`] bytes, written once by who poisoned the group.
    pub(super) fn reason(&self) -> *mut u8 {
        self.segment.span(2 * CACHE_LINE, REASON_BYTES)
    }

    /// Number of the last piece that `rank` has written. Wraps.
    pub(super) fn posted(&self, rank: u32) -> &AtomicU32 {
        self.segment.u32_at(self.block(rank))
    }

    pub(super) fn attached(&self, rank: u32) -> &AtomicU32 {
        self.segment.u32_at(self.block(rank) + CACHE_LINE)
    }

    /// What `rank` sleeps on.
    pub(super) fn bell(&self, rank: u32) -> &AtomicU32 {
        self.segment.u32_at(self.block(rank) + 2 * CACHE_LINE)
    }

    pub(super) fn stamp(&self, rank: u32, piece: u32) -> Stamp<'_> {
        let at = self.block(rank) + (4 + Self::buffer(piece)) * CACHE_LINE;
        Stamp {
            call: self.segment.u64_at(at),
            numel: self.segment.u64_at(at + 8),
            what: self.segment.u32_at(at + 16),
            dtype: self.segment.u32_at(at + 20),
        }
    }

    /// [`PIECE_BYTES`] bytes, aligned to a page.
    pub(super) fn data(&self, rank: u32, piece: u32) -> *mut u8 {
        self.segment.span(self.block(rank) + PAGE + Self::buffer(piece) * PIECE_BYTES, PIECE_BYTES)
    }

    fn buffer(piece: u32) -> usize {
        piece as usize % BUFFERS
    }

    fn block(&self, rank: u32) -> usize {
        debug_assert!(rank < self.world);
        PAGE + rank as usize * Self::BLOCK
    }
}
