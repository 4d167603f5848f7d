//! The thread that paces frames out: takes the one that is due, encodes it, and publishes its parts.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use contract::error::{Error, Reason};
use contract::event::{ChunkReport, Event};
use contract::ids::{CacheEpoch, ChunkIndex};
use runtime::metric_names;
use tracing::warn;
use video::{CodecError, I420, VideoEncoder};

use super::{IDLE, MediaSink, Shared, State};
use crate::events::Events;
use crate::losses::{Losses, Told};
use crate::media::{Stream, Tag, parts};
use crate::queue::Frame;
use crate::session::Shown;

/// Which chunk, over all histories.
type Which = (CacheEpoch, ChunkIndex);
const NONE: Which = (CacheEpoch(0), ChunkIndex(0));

struct Work {
    frame: Frame,
    timestamp: u64,
    keyframe: bool,
    kbps: Option<u32>,
    dropped: u64,
}

pub(super) struct Sender<S> {
    shared: Arc<Shared>,
    stream: Stream,
    encoder: Box<dyn VideoEncoder>,
    sink: S,
    events: Events,
    shown: Shown,
    sequence: u64,
    losses: Losses,
    /// Time spent on the frames of the chunk that is being sent.
    encode: (Which, Duration),
    to_packet: (Which, Duration),
}

impl<S: MediaSink> Sender<S> {
    pub(super) fn new(
        shared: Arc<Shared>,
        encoder: Box<dyn VideoEncoder>,
        stream: Stream,
        sink: S,
        events: Events,
        shown: Shown,
    ) -> Self {
        Self {
            shared,
            stream,
            encoder,
            sink,
            events,
            shown,
            sequence: 0,
            losses: Losses::default(),
            encode: (NONE, Duration::ZERO),
            to_packet: (NONE, Duration::ZERO),
        }
    }

    pub(super) fn run(mut self) {
        let mut last: Option<(Arc<I420>, Tag)> = None;
        while let Some(mut work) = self.next(last.as_ref()) {
            last = Some((Arc::clone(&work.frame.picture), work.frame.tag));
            let (report, keyframe, dropped) = (work.frame.report.take(), work.keyframe, work.dropped);
            if let Err(error) = self.send(work) {
                warn!(session = %self.stream.session, %error, "a frame could not be encoded");
                let error =
                    Error::new(Reason::Internal, "a frame could not be encoded").detail(error.to_string());
                self.events.error(&error);
                self.shared.lock().keyframe |= keyframe;
            }
            if let Some(report) = report {
                self.report(report, dropped);
            }
        }
    }

    /// Waits for the frame that is due next; `None` at the end.
    fn next(&self, last: Option<&(Arc<I420>, Tag)>) -> Option<Work> {
        let mut state = self.shared.lock();
        loop {
            let now = Instant::now();
            if state.ended {
                return None;
            }
            let mut wait = IDLE;
            if state.paused {
                if let Some((picture, tag)) = last.filter(|_| state.keyframe) {
                    let (picture, tag) = (Arc::clone(picture), *tag);
                    let frame = Frame { picture, tag, parameter_arrived: None, report: None };
                    return Some(take(&mut state, frame, now, now));
                }
            } else if state.queue.len() > 0 {
                let due = state.pacer.due(state.queue.len(), self.shared.chunk_frames, now);
                if due <= now {
                    let frame = state.queue.pop()?;
                    self.shared.changed.notify_all();
                    return Some(take(&mut state, frame, due, now));
                }
                wait = due - now;
            }
            state = self.shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn send(&mut self, work: Work) -> Result<(), CodecError> {
        let Work { frame, timestamp, keyframe, kbps, .. } = work;
        let started = Instant::now();
        if let Some(kbps) = kbps {
            self.set_bitrate(kbps);
        }
        let unit = self.encoder.encode(&frame.picture, keyframe)?;
        metrics::counter!(metric_names::FRAMES).increment(1);
        metrics::counter!(metric_names::MEDIA_BYTES).increment(unit.data.len() as u64);
        if unit.keyframe {
            let reason = if self.sequence == 0 { "first" } else { "asked" };
            metrics::counter!(metric_names::KEYFRAMES, "reason" => reason).increment(1);
        }
        let chunk = (frame.tag.cache_epoch, frame.tag.chunk_index);
        accumulate(&mut self.encode, chunk, started.elapsed());
        let mut lost = None;
        for part in parts(&self.stream, frame.tag, self.sequence, timestamp, &unit) {
            lost = lost.or(self.sink.publish(part).err());
        }
        self.sequence += 1;
        if let Some(arrived) = frame.parameter_arrived {
            self.to_packet = (chunk, arrived.elapsed());
        }
        match self.losses.note(lost.is_some()) {
            Some(Told::Began) => {
                let error = lost.as_ref().map(ToString::to_string);
                warn!(session = %self.stream.session, error, "access units are lost from here on");
            }
            Some(Told::Ended(lost)) => {
                warn!(session = %self.stream.session, lost, "access units go out again")
            }
            None => {}
        }
        if lost.is_some() {
            // The frames that follow build on this one: the viewer needs a new start.
            self.shared.lock().keyframe = true;
        }
        Ok(())
    }

    /// The picture goes on at the old one if the encoder refuses.
    fn set_bitrate(&mut self, kbps: u32) {
        match self.encoder.set_bitrate(kbps) {
            Ok(()) => metrics::gauge!(metric_names::BITRATE_BITS).set(f64::from(kbps) * 1000.0),
            Err(error) => {
                warn!(session = %self.stream.session, kbps, %error, "the bitrate could not be set");
            }
        }
    }

    fn report(&self, mut report: Box<ChunkReport>, dropped: u64) {
        let micros = |(chunk, took): (Which, Duration)| {
            if chunk == (report.cache_epoch, report.chunk_index) {
                u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
            } else {
                0
            }
        };
        (report.timings.encode_us, report.timings.parameter_to_packet_us) =
            (micros(self.encode), micros(self.to_packet));
        report.dropped_frames = dropped;
        crate::telemetry::chunk(&report);
        self.shown.sent(report.timings);
        self.events.send(Event::Chunk(report));
    }
}

fn take(state: &mut State, frame: Frame, due: Instant, now: Instant) -> Work {
    Work {
        timestamp: state.pacer.sent(due, now),
        keyframe: std::mem::take(&mut state.keyframe),
        kbps: state.kbps.take(),
        dropped: state.queue.dropped(),
        frame,
    }
}

fn accumulate(total: &mut (Which, Duration), chunk: Which, took: Duration) {
    if total.0 != chunk {
        *total = (chunk, Duration::ZERO);
    }
    total.1 += took;
}
