//! From decoded frames to access units on their way: a bounded queue, paced out by a thread of its own that encodes each
//! frame at the moment it is sent.

mod sender;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use contract::error::{Error, Reason};
use contract::event::Event;
use contract::ids::CacheEpoch;
use contract::media::MediaPart;
use runtime::metric_names;
use video::{I420, VideoEncoder};

use crate::events::Events;
use crate::media::{Stream, Tag};
use crate::pacer::Pacer;
use crate::queue::{Frame, FrameQueue};
use crate::session::Shown;
use sender::Sender;

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
    /// No thread can be had.
    pub(crate) fn start(
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
        let sender = Sender::new(Arc::clone(&shared), encoder, stream, sink, events.clone(), shown);
        let thread = std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || sender.run())
            .map_err(|e| Error::new(Reason::Internal, "no thread for the output").detail(e.to_string()))?;
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use contract::event::{ChunkReport, SessionEvent};
    use contract::ids::{ChunkIndex, Incarnation, SessionId};
    use contract::media::VideoCodec;
    use contract::model::Size;

    use video::CodecError;

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
        start_with(video::encoder(VideoCodec::Vp8, SIZE, 500).unwrap())
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
        let output = Output::start(encoder, stream, 12, events_of, shown, Channel(tx)).unwrap();
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
            video::encoder(VideoCodec::Vp8, Size { width: 0, height: 0 }, 1).err().unwrap()
        }
    }

    impl VideoEncoder for Refusing {
        fn encode(&mut self, _: &I420, keyframe: bool) -> Result<video::AccessUnit, CodecError> {
            self.pictures += 1;
            if self.pictures == 1 {
                return Err(Self::refusal());
            }
            Ok(video::AccessUnit { keyframe, data: vec![0] })
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
