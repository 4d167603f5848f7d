//! What a viewer saw of a fault. Pure: events go in with the time they came.

use std::time::{Duration, Instant};

use contract::event::{ChunkReport, Event, SessionState};

/// Chunks after the last sign of trouble that count as a stream which flows again: more than can be in hand when a fault
/// strikes.
const SETTLED: usize = 4;

#[derive(Clone, Debug)]
pub struct Trace {
    struck: Instant,
    /// First and last sign of trouble: an error, or a state other than streaming.
    trouble: Option<(Instant, Instant)>,
    pub chunks: Vec<(Instant, ChunkReport)>,
    since_trouble: usize,
    pub states: Vec<SessionState>,
    /// What the viewer was told, errors of states included.
    pub errors: Vec<String>,
    failed_calls: u64,
    pub ended: bool,
    /// How often the session had to be asked for again.
    pub lives_lost: u64,
}

impl Trace {
    /// Of a fault that struck then.
    #[must_use]
    pub fn new(struck: Instant) -> Self {
        Self {
            struck,
            trouble: None,
            chunks: Vec::new(),
            since_trouble: 0,
            states: Vec::new(),
            errors: Vec::new(),
            failed_calls: 0,
            ended: false,
            lives_lost: 0,
        }
    }

    pub fn note(&mut self, at: Instant, event: Event) {
        if at < self.struck {
            return;
        }
        match event {
            Event::Chunk(report) => {
                self.since_trouble += 1;
                self.chunks.push((at, *report));
            }
            Event::Error { error } => {
                self.failed_calls += 1;
                self.errors.push(error.message);
                self.troubled(at);
            }
            Event::State { state, error } => {
                self.states.push(state);
                self.errors.extend(error.map(|error| error.message));
                self.ended |= state == SessionState::Ended;
                if state != SessionState::Streaming {
                    self.troubled(at);
                }
            }
            Event::Applied { .. } | Event::Continued { .. } => {}
        }
    }

    /// Nobody served the session any more; it is asked for again.
    pub fn lost(&mut self, at: Instant) {
        self.ended = false;
        self.lives_lost += 1;
        self.troubled(at);
    }

    fn troubled(&mut self, at: Instant) {
        let first = self.trouble.map_or(at, |(first, _)| first);
        self.trouble = Some((first, at));
        self.since_trouble = 0;
    }

    /// Whether frames have flowed for a while, if there was trouble at all.
    #[must_use]
    pub fn has_settled(&self) -> bool {
        self.since_trouble >= SETTLED
    }

    #[must_use]
    pub fn told(&self) -> bool {
        self.trouble.is_some()
    }

    /// From the fault to the first word of it.
    #[must_use]
    pub fn noticed_after(&self) -> Option<Duration> {
        self.trouble.map(|(first, _)| first.saturating_duration_since(self.struck))
    }

    /// From the fault to the end of the longest time without a chunk. Chunks that were in hand when it struck still come.
    #[must_use]
    pub fn again_after(&self) -> Option<Duration> {
        let before = std::iter::once(self.struck).chain(self.chunks.iter().map(|(at, _)| *at));
        let gaps = before.zip(&self.chunks).map(|(before, (at, _))| (*at - before, *at));
        let (_, again) = gaps.max_by_key(|(gap, _)| *gap)?;
        Some(again.saturating_duration_since(self.struck))
    }

    /// Chunks whose making failed, and those that the numbering shows to be missing.
    #[must_use]
    pub fn chunks_lost(&self) -> u64 {
        let indices: Vec<u64> = self.chunks.iter().map(|(_, report)| report.chunk_index.0).collect();
        let missing = |pair: &[u64]| pair[1].saturating_sub(pair[0] + 1);
        self.failed_calls + indices.windows(2).map(missing).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use contract::{CacheEpoch, ChunkIndex, Digest, Error, MeshEpoch, Reason};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn chunk(index: u64) -> Event {
        Event::Chunk(Box::new(ChunkReport {
            chunk_index: ChunkIndex(index),
            cache_epoch: CacheEpoch(1),
            mesh_epoch: MeshEpoch(1),
            frames: 12,
            fps: 30.0,
            dropped_frames: 0,
            latents: Digest::of(&[]),
            timings: contract::event::ChunkTimings::default(),
        }))
    }

    fn failed() -> Event {
        Event::Error { error: Error::new(Reason::RankLost, "rank 1 is gone").for_client() }
    }

    #[test]
    fn frames_flow_again_when_the_longest_gap_ends_and_a_chunk_in_hand_is_not_taken_for_it() {
        let struck = Instant::now();
        let mut trace = Trace::new(struck);
        trace.note(struck + 50 * MS, chunk(7));
        trace.note(struck + 300 * MS, failed());
        trace.note(struck + 900 * MS, Event::State { state: SessionState::Recovering, error: None });
        for late in 0..4 {
            assert!(!trace.has_settled());
            trace.note(struck + (2000 + late) * MS, chunk(8 + u64::from(late)));
        }
        assert!(trace.has_settled());
        assert_eq!(trace.noticed_after(), Some(300 * MS));
        assert_eq!(trace.again_after(), Some(2000 * MS));
        assert_eq!(trace.chunks_lost(), 1);
    }

    #[test]
    fn without_a_word_the_longest_gap_is_the_fault() {
        let struck = Instant::now();
        let mut trace = Trace::new(struck);
        for (at, index) in [(100, 1), (200, 2), (900, 4), (1000, 5)] {
            trace.note(struck + at * MS, chunk(index));
        }
        assert_eq!((trace.noticed_after(), trace.again_after()), (None, Some(900 * MS)));
        assert_eq!(trace.chunks_lost(), 1, "chunk 3 is missing");
    }
}
