//! When the next frame goes out, and with which time stamp. Pure: time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Chunks that the rate is measured over.
const CHUNKS: usize = 10;
const MIN_FPS: f64 = 1.0;
const MAX_FPS: f64 = 60.0;
/// Ticks of the RTP clock in a second.
const CLOCK: f64 = 90_000.0;
/// While more than a chunk waits, frames go out this much faster, so that a delay once caught is lost again.
const CATCH_UP: f64 = 1.1;

/// Frames a second that a session makes: frames over intervals of the last chunks.
#[derive(Debug, Default)]
pub(crate) struct RateMeter {
    chunks: VecDeque<(u32, Duration)>,
    last: Option<Instant>,
}

impl RateMeter {
    /// `frames` were complete at `now`; `took` counts for the first chunk and the first after a pause.
    pub(crate) fn chunk(&mut self, frames: u32, took: Duration, now: Instant) {
        let interval = self.last.map_or(took, |last| now.saturating_duration_since(last));
        self.last = Some(now);
        self.chunks.push_back((frames, interval));
        if self.chunks.len() > CHUNKS {
            self.chunks.pop_front();
        }
    }

    /// For so long nothing was made, for want of room to put it: that does not count as slowness. If it did, a session that began
    /// slowly would wait for frames that go out slowly, and stay slow.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.last = self.last.map(|last| last + time);
    }

    /// Time stood still: the interval that is running does not count.
    pub(crate) fn pause(&mut self) {
        self.last = None;
    }

    /// 1 to 60; 60 before the first chunk.
    pub(crate) fn fps(&self) -> f64 {
        let frames: u32 = self.chunks.iter().map(|(frames, _)| frames).sum();
        let seconds: f64 = self.chunks.iter().map(|(_, interval)| interval.as_secs_f64()).sum();
        if frames == 0 { MAX_FPS } else { (f64::from(frames) / seconds.max(1e-6)).clamp(MIN_FPS, MAX_FPS) }
    }
}

/// Spaces frames evenly at a given rate.
#[derive(Debug)]
pub(crate) struct Pacer {
    origin: Instant,
    last_due: Option<Instant>,
    last_stamp: Option<u64>,
    fps: f64,
}

impl Pacer {
    pub(crate) fn new(origin: Instant) -> Self {
        Self { origin, last_due: None, last_stamp: None, fps: MAX_FPS }
    }

    pub(crate) fn set_fps(&mut self, fps: f64) {
        self.fps = fps.clamp(MIN_FPS, MAX_FPS);
    }

    /// When the next frame is due, with `waiting` frames in the queue and `chunk` frames in a chunk.
    pub(crate) fn due(&self, waiting: usize, chunk: usize, now: Instant) -> Instant {
        let rate = if waiting > chunk { self.fps * CATCH_UP } else { self.fps };
        self.last_due.map_or(now, |last| last + Duration::from_secs_f64(1.0 / rate))
    }

    /// The frame that was due at `due` goes out at `now`. Returns its time stamp on the 90 kHz clock: the time it was due,
    /// or now if the queue had run dry, and always later than the one before.
    pub(crate) fn sent(&mut self, due: Instant, now: Instant) -> u64 {
        // A frame that is late by more than a frame does not make the following ones hurry.
        let late = now.saturating_duration_since(due) > Duration::from_secs_f64(1.0 / self.fps);
        let at = if late { now } else { due };
        self.last_due = Some(at);
        let stamp = (at.saturating_duration_since(self.origin).as_secs_f64() * CLOCK) as u64;
        let stamp = self.last_stamp.map_or(stamp, |last| stamp.max(last + 1));
        self.last_stamp = Some(stamp);
        stamp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_rate_is_that_of_the_last_chunks() {
        let start = Instant::now();
        let mut meter = RateMeter::default();
        assert_eq!(meter.fps(), 60.0);
        meter.chunk(9, SECOND, start);
        assert_eq!(meter.fps(), 9.0);
        for n in 1..=10 {
            meter.chunk(12, SECOND * 99, start + SECOND * n);
        }
        assert_eq!(meter.fps(), 12.0);
    }

    #[test]
    fn a_pause_does_not_count_as_slowness() {
        let start = Instant::now();
        let mut meter = RateMeter::default();
        meter.chunk(12, SECOND, start);
        meter.pause();
        meter.chunk(12, SECOND, start + SECOND * 100);
        assert_eq!(meter.fps(), 12.0);
    }

    /// A chunk loop and its output in time that is made up: the first chunk takes `first`, each other one `each`.
    fn fps_after(chunks: usize, first: Duration, each: Duration) -> f64 {
        const CHUNK: usize = 12;
        let mut now = Instant::now();
        let (mut meter, mut pacer, mut queue) = (RateMeter::default(), Pacer::new(now), 0);
        for chunk in 0..chunks {
            let took = if chunk == 0 { first } else { each };
            now += took;
            while queue > 0 && pacer.due(queue, CHUNK, now) <= now {
                let due = pacer.due(queue, CHUNK, now);
                pacer.sent(due, due);
                queue -= 1;
            }
            meter.chunk(CHUNK as u32, took, now);
            pacer.set_fps(meter.fps());
            queue += CHUNK;
            let arrived = now;
            while queue > CHUNK {
                let due = pacer.due(queue, CHUNK, now);
                now = now.max(due);
                pacer.sent(due, now);
                queue -= 1;
            }
            meter.waited(now - arrived);
        }
        meter.fps()
    }

    #[test]
    fn a_session_that_began_slowly_is_as_fast_as_it_can_be_once_that_is_past() {
        let fps = fps_after(2 * CHUNKS, SECOND * 6, SECOND / 4);
        assert!((fps - 48.0).abs() < 0.5, "{fps} of 48 frames a second");
    }

    #[test]
    fn the_rate_stays_within_its_bounds() {
        let mut meter = RateMeter::default();
        meter.chunk(12, Duration::from_millis(1), Instant::now());
        assert_eq!(meter.fps(), 60.0);
        let mut meter = RateMeter::default();
        meter.chunk(12, SECOND * 1000, Instant::now());
        assert_eq!(meter.fps(), 1.0);
    }

    #[test]
    fn frames_are_spaced_evenly_and_stamped_with_their_due_time() {
        let start = Instant::now();
        let mut pacer = Pacer::new(start);
        pacer.set_fps(10.0);
        let mut now = start;
        for n in 0..20 {
            let due = pacer.due(5, 12, now);
            // A little late each time: the spacing does not drift.
            now = due + Duration::from_millis(3);
            let stamp = pacer.sent(due, now);
            assert!(stamp.abs_diff(n * 9000) <= 1, "frame {n}: {stamp}");
        }
    }

    #[test]
    fn after_the_queue_ran_dry_time_goes_on_from_now() {
        let start = Instant::now();
        let mut pacer = Pacer::new(start);
        pacer.set_fps(10.0);
        pacer.sent(start, start);
        let later = start + SECOND * 5;
        let due = pacer.due(12, 12, later);
        assert!(due < later);
        assert_eq!(pacer.sent(due, later), 5 * 90_000);
        assert!(pacer.due(11, 12, later) > later);
    }

    #[test]
    fn more_than_a_chunk_in_the_queue_goes_out_faster() {
        let start = Instant::now();
        let mut pacer = Pacer::new(start);
        pacer.set_fps(10.0);
        pacer.sent(start, start);
        assert!(pacer.due(13, 12, start) < pacer.due(12, 12, start));
    }

    #[test]
    fn stamps_never_stand_still() {
        let start = Instant::now();
        let mut pacer = Pacer::new(start);
        let first = pacer.sent(start, start);
        assert!(pacer.sent(start, start) > first);
    }
}
