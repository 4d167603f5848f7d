//! The frames that wait to be sent. Pure.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use contract::event::ChunkReport;
use contract::ids::CacheEpoch;
use video::I420;

use crate::media::Tag;

#[derive(Debug)]
pub(crate) struct Frame {
    pub picture: Arc<I420>,
    pub tag: Tag,
    /// On the first frame of a chunk that used a parameter update: when the newest of them came.
    pub parameter_arrived: Option<Instant>,
    /// On the last frame of a chunk: what remains to be said of it.
    pub report: Option<Box<ChunkReport>>,
}

/// Bounded: when full, the oldest frame goes.
#[derive(Debug)]
pub(crate) struct FrameQueue {
    frames: VecDeque<Frame>,
    capacity: usize,
    dropped: u64,
}

impl FrameQueue {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { frames: VecDeque::new(), capacity: capacity.max(1), dropped: 0 }
    }

    /// Returns the frame that had to go.
    pub(crate) fn push(&mut self, frame: Frame) -> Option<Frame> {
        self.frames.push_back(frame);
        if self.frames.len() <= self.capacity {
            return None;
        }
        self.dropped += 1;
        self.frames.pop_front()
    }

    pub(crate) fn pop(&mut self) -> Option<Frame> {
        self.frames.pop_front()
    }

    /// Forgets the frames of cache epochs before `epoch`. These count as cut, not as dropped.
    pub(crate) fn flush_before(&mut self, epoch: CacheEpoch) {
        self.frames.retain(|frame| frame.tag.cache_epoch >= epoch);
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Frames dropped since the session began, because the queue was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use contract::ids::ChunkIndex;
    use contract::model::Size;

    use super::*;

    fn frame(cache_epoch: u64, frame: u16) -> Frame {
        let size = Size { width: 2, height: 2 };
        Frame {
            picture: Arc::new(I420::new(size, vec![0; 6])),
            tag: Tag { cache_epoch: CacheEpoch(cache_epoch), chunk_index: ChunkIndex(0), frame },
            parameter_arrived: None,
            report: None,
        }
    }

    #[test]
    fn a_full_queue_drops_its_oldest_frame_and_counts_it() {
        let mut queue = FrameQueue::new(3);
        let gone: Vec<u16> = (0..5).filter_map(|n| queue.push(frame(1, n))).map(|f| f.tag.frame).collect();
        assert_eq!((gone, queue.dropped(), queue.len()), (vec![0, 1], 2, 3));
        assert_eq!(queue.pop().unwrap().tag.frame, 2);
    }

    #[test]
    fn a_cut_flushes_older_epochs_and_nothing_else() {
        let mut queue = FrameQueue::new(9);
        for epoch in 1..=3 {
            queue.push(frame(epoch, 0));
        }
        queue.flush_before(CacheEpoch(3));
        assert_eq!((queue.len(), queue.dropped()), (1, 0));
    }
}
