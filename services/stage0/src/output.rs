//! From decoded frames to access units on their way: a bounded queue, paced out by a thread of its own that encodes each
//! frame at the moment it is sent.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use contract::error::{Error, Reason};
use contract::event::{ChunkReport, Event};
use contract::ids::{CacheEpoch, ChunkIndex};
use contract::media::MediaPart;
use runtime::metric_names;
use tracing::warn;

use crate::codec::{self, CodecError, I420, VideoEncoder};
use crate::events::Events;
use crate::losses::{Losses, Told};
use crate::media::{Stream, Tag, parts};
use crate::pacer::Pacer;
use crate::queue::{Frame, FrameQueue};
use crate::session::Shown;

/// Chunks that may wait.
const CHUNKS: usize = 2;
/// Nothing to do is looked at again after this long.
const IDLE: Duration = Duration::from_millis(500);

/// Takes parts of access units; an error means that the part is lost.
pub(crate) trait MediaSink: Send {
    /// # Errors
    /// The broker is away or slow.
    fn publish(&self, part: MediaPart) -> Result<(), Error>;
}

struct State {
    queue: FrameQueue,
    pacer: Pacer,
    paused: bool,
    keyframe: bool,
    /// A bitrate that the encoder has not been told yet.
    kbps: Option<u32>,
    latest: Option<(Arc<I420>, Tag)>,
    ended: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    chunk_frames: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The session's end of the output; the thread ends when this is dropped.
pub(crate) struct Output {
    shared: Arc<Shared>,
    events: Events,
    thread: Option<JoinHandle<()>>,
}

/// Wishes of viewers, from anywhere.
#[derive(Clone)]
pub(crate) struct OutputControl(Arc<Shared>);

impl Output {
    /// `chunk_frames`: frames in a full chunk.
    ///
    /// # Errors
    /// No encoder for this codec and size, or no thread.
    pub(crate) fn start(
        stream: Stream,
        kbps: u32,
        chunk_frames: usize,
        events: Events,
        shown: Shown,
        sink: impl MediaSink + 'static,
    ) -> Result<Self, Error> {
        let encoder =
            codec::encoder(stream.codec, stream.size, kbps).map_err(|e| cannot_start(e.to_string()))?;
        Self::start_with(encoder, stream, chunk_frames, events, shown, sink)
    }

    fn start_with(
        encoder: Box<dyn VideoEncoder>,
        stream: Stream,
        chunk_frames: usize,
        events: Events,
        shown: Shown,
        sink: impl MediaSink + 'static,
    ) -> Result<Self, Error> {
        let state = State {
            queue: FrameQueue::new(CHUNKS * chunk_frames),
            pacer: Pacer::new(Instant::now()),
            paused: false,
            keyframe: true,
            kbps: None,
            latest: None,
            ended: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), chunk_frames });
        let sender = Sender {
            shared: Arc::clone(&shared),
            stream,
            encoder,
            sink,
            events: events.clone(),
            shown,
            sequence: 0,
            losses: Losses::default(),
            encode: (NONE, Duration::ZERO),
            to_packet: (NONE, Duration::ZERO),
        };
        let thread = std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || sender.run())
            .map_err(|e| cannot_start(e.to_string()))?;
        Ok(Self { shared, events, thread: Some(thread) })
    }

    pub(crate) fn control(&self) -> OutputControl {
        OutputControl(Arc::clone(&self.shared))
    }

    pub(crate) fn push(&self, frame: Frame) {
        let mut state = self.shared.lock();
        state.latest = Some((Arc::clone(&frame.picture), frame.tag));
        let gone = state.queue.push(frame);
        drop(state);
        self.shared.changed.notify_all();
        if gone.is_some() {
            metrics::counter!(metric_names::FRAMES_DROPPED, "reason" => "queue_full").increment(1);
        }
        if let Some(report) = gone.and_then(|frame| frame.report) {
            self.events.send(Event::Chunk(report));
        }
    }

    /// Waits until no more than a chunk waits to be sent, at most for `limit`. Returns whether it is so.
    pub(crate) fn wait_for_room(&self, limit: Duration) -> bool {
        let full = |state: &mut State| state.queue.len() > self.shared.chunk_frames;
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), limit, full);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    pub(crate) fn flush_before(&self, epoch: CacheEpoch) {
        self.shared.lock().queue.flush_before(epoch);
    }

    pub(crate) fn set_fps(&self, fps: f64) {
        self.shared.lock().pacer.set_fps(fps);
    }

    /// Holds what waits until it goes on.
    pub(crate) fn pause(&self, paused: bool) {
        self.shared.lock().paused = paused;
        self.shared.changed.notify_all();
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        // The thread looks at `ended` after each frame; a publication takes half a second at most.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl OutputControl {
    /// The next access unit is a keyframe. While paused, the last picture is sent again as one.
    pub(crate) fn keyframe(&self) {
        self.0.lock().keyframe = true;
        self.0.changed.notify_all();
    }

    /// Holds what waits, at once.
    pub(crate) fn pause(&self, paused: bool) {
        self.0.lock().paused = paused;
        self.0.changed.notify_all();
    }

    pub(crate) fn bitrate(&self, kbps: u32) {
        self.0.lock().kbps = Some(kbps);
    }

    /// The picture that was decoded last.
    pub(crate) fn latest(&self) -> Option<(Arc<I420>, Tag)> {
        self.0.lock().latest.clone()
    }
}

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

struct Sender<S> {
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
    fn run(mut self) {
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

fn cannot_start(what: String) -> Error {
    Error::new(Reason::Internal, "the video encoder cannot be started").detail(what)
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use contract::event::SessionEvent;
    use contract::ids::{Incarnation, SessionId};
    use contract::media::VideoCodec;
    use contract::model::Size;

    use super::*;

    struct Channel(mpsc::SyncSender<MediaPart>);

    impl MediaSink for Channel {
        fn publish(&self, part: MediaPart) -> Result<(), Error> {
            let refused = |_| Error::new(Reason::BrokerUnavailable, "gone");
            self.0.send(part).map_err(refused)
        }
    }

    const SIZE: Size = Size { width: 64, height: 64 };
    const WAIT: Duration = Duration::from_secs(20);

    struct Fixture {
        output: Output,
        parts: mpsc::Receiver<MediaPart>,
        events: crate::events::Queue,
    }

    fn start() -> Fixture {
        start_with(codec::encoder(VideoCodec::Vp8, SIZE, 500).unwrap())
    }

    fn start_with(encoder: Box<dyn VideoEncoder>) -> Fixture {
        let (queue, events) = crate::events::queue();
        let stream = Stream {
            session: SessionId::random(),
            incarnation: Incarnation(1),
            codec: VideoCodec::Vp8,
            size: SIZE,
        };
        let events_of = Events::new(queue, stream.session, stream.incarnation);
        let shown = Shown::new(stream.session, stream.incarnation);
        let (tx, parts) = mpsc::sync_channel(64);
        let output = Output::start_with(encoder, stream, 12, events_of, shown, Channel(tx)).unwrap();
        Fixture { output, parts, events }
    }

    /// Refuses the first picture and the first bitrate, and tells what bitrates it was asked for.
    struct Refusing {
        pictures: u32,
        bitrates: mpsc::SyncSender<u32>,
        bitrate_refused: bool,
    }

    impl Refusing {
        fn refusal() -> CodecError {
            codec::encoder(VideoCodec::Vp8, Size { width: 0, height: 0 }, 1).err().unwrap()
        }
    }

    impl VideoEncoder for Refusing {
        fn encode(&mut self, _: &I420, keyframe: bool) -> Result<codec::AccessUnit, CodecError> {
            self.pictures += 1;
            if self.pictures == 1 {
                return Err(Self::refusal());
            }
            Ok(codec::AccessUnit { keyframe, data: vec![0] })
        }

        fn set_bitrate(&mut self, kbps: u32) -> Result<(), CodecError> {
            let _ = self.bitrates.send(kbps);
            if std::mem::replace(&mut self.bitrate_refused, true) { Ok(()) } else { Err(Self::refusal()) }
        }
    }

    #[test]
    fn a_picture_that_the_encoder_refuses_is_told_and_costs_neither_the_report_nor_the_keyframe() {
        let (bitrates, _asked) = mpsc::sync_channel(8);
        let mut fixture = start_with(Box::new(Refusing { pictures: 0, bitrates, bitrate_refused: false }));
        fixture.output.push(Frame { report: Some(report(0)), ..frame(0, 0) });
        fixture.output.push(frame(1, 0));
        let part = fixture.parts.recv_timeout(WAIT).unwrap();
        assert_eq!((part.chunk_index, part.keyframe, part.sequence), (ChunkIndex(1), true, 0));
        let mut events = || fixture.events.blocking_recv().unwrap().event;
        assert!(matches!(events(), Event::Error { .. }));
        assert!(matches!(events(), Event::Chunk(report) if report.chunk_index == ChunkIndex(0)));
    }

    #[test]
    fn a_bitrate_reaches_the_encoder_and_one_that_it_refuses_costs_no_picture() {
        let (bitrates, asked) = mpsc::sync_channel(8);
        let fixture = start_with(Box::new(Refusing { pictures: 1, bitrates, bitrate_refused: false }));
        for kbps in [900, 700] {
            fixture.output.control().bitrate(kbps);
            fixture.output.push(frame(0, 0));
            fixture.parts.recv_timeout(WAIT).unwrap();
            assert_eq!(asked.try_recv(), Ok(kbps));
        }
    }

    fn frame(chunk: u64, frame: u16) -> Frame {
        let picture = Arc::new(I420::new(SIZE, vec![(chunk * 12 + u64::from(frame)) as u8; 64 * 64 * 3 / 2]));
        let tag = Tag { cache_epoch: CacheEpoch(1), chunk_index: ChunkIndex(chunk), frame };
        Frame { picture, tag, parameter_arrived: None, report: None }
    }

    fn report(chunk: u64) -> Box<ChunkReport> {
        Box::new(ChunkReport {
            chunk_index: ChunkIndex(chunk),
            cache_epoch: CacheEpoch(1),
            mesh_epoch: contract::MeshEpoch(1),
            frames: 3,
            fps: 0.0,
            dropped_frames: 0,
            latents: contract::Digest::of(&[b"x"]),
            timings: contract::event::ChunkTimings::default(),
        })
    }

    #[test]
    fn frames_go_out_in_order_without_gaps_and_the_report_follows_the_last() {
        let mut fixture = start();
        for n in 0..3 {
            let report = (n == 2).then(|| report(0));
            let parameter_arrived = (n == 0).then(Instant::now);
            fixture.output.push(Frame { report, parameter_arrived, ..frame(0, n) });
        }
        let parts: Vec<_> = (0..3).map(|_| fixture.parts.recv_timeout(WAIT).unwrap()).collect();
        assert_eq!(parts.iter().map(|p| (p.sequence, p.frame)).collect::<Vec<_>>(), [(0, 0), (1, 1), (2, 2)]);
        assert_eq!(parts.iter().map(|p| p.keyframe).collect::<Vec<_>>(), [true, false, false]);
        assert!(parts.is_sorted_by(|a, b| a.timestamp < b.timestamp));
        let Some(SessionEvent { event: Event::Chunk(report), .. }) = fixture.events.blocking_recv() else {
            panic!("a report is expected")
        };
        assert!(report.timings.encode_us > 0 && report.timings.parameter_to_packet_us > 0);
    }

    #[test]
    fn a_pause_holds_frames_and_a_keyframe_shows_the_last_one_again() {
        let fixture = start();
        fixture.output.push(frame(0, 0));
        fixture.parts.recv_timeout(WAIT).unwrap();
        fixture.output.pause(true);
        fixture.output.push(frame(0, 1));
        fixture.output.control().keyframe();
        let again = fixture.parts.recv_timeout(WAIT).unwrap();
        assert_eq!((again.keyframe, again.frame, again.sequence), (true, 0, 1));
        fixture.output.pause(false);
        let next = fixture.parts.recv_timeout(WAIT).unwrap();
        assert_eq!((next.keyframe, next.frame, next.sequence), (false, 1, 2));
    }

    #[test]
    fn there_is_room_once_no_more_than_a_chunk_waits() {
        let fixture = start();
        fixture.output.pause(true);
        (0..13).for_each(|n| fixture.output.push(frame(0, n)));
        assert!(!fixture.output.wait_for_room(Duration::from_millis(1)));
        fixture.output.pause(false);
        assert!(fixture.output.wait_for_room(WAIT));
    }

    #[test]
    fn after_a_lost_access_unit_the_next_is_a_keyframe() {
        let Fixture { output, parts, mut events } = start();
        output.push(Frame { report: Some(report(0)), ..frame(0, 0) });
        parts.recv_timeout(WAIT).unwrap();
        events.blocking_recv();
        drop(parts);
        output.push(Frame { report: Some(report(1)), ..frame(1, 0) });
        events.blocking_recv();
        assert!(output.shared.lock().keyframe);
    }
}
