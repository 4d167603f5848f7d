//! A flight recorder: what the protocol machines of this process were told and decided lately, kept in memory and
//! written to a file when something goes wrong.

mod dump;
mod ring;

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use contract::recording::{EventKind, Recording, RecordingHeader};
use contract::status::Fault;
use contract::{CellId, InstanceId};
use tracing::{info, warn};

use crate::clock;
use ring::Ring;

/// Clones are the same recorder. The time of everything is given by its caller.
#[derive(Clone)]
pub struct Recorder(Arc<Inner>);

struct Inner {
    process: String,
    cell: CellId,
    instance: OnceLock<InstanceId>,
    origin: Instant,
    origin_unix_ms: u64,
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ring: Ring,
    fault: Option<(String, Instant)>,
    /// A thread writes a dump; whatever is to be dumped meanwhile is written by it afterwards, as one.
    writing: bool,
    again: Option<String>,
}

impl Recorder {
    /// An empty recorder that counts from `origin`, which was at `origin_unix_ms` milliseconds since 1970, and dumps into
    /// `dir`.
    #[must_use]
    pub fn new(process: &str, cell: CellId, dir: PathBuf, origin: Instant, origin_unix_ms: u64) -> Self {
        Self(Arc::new(Inner {
            process: process.to_owned(),
            cell,
            instance: OnceLock::new(),
            origin,
            origin_unix_ms,
            dir,
            state: Mutex::default(),
        }))
    }

    /// Tells which life of the process this is; the first time counts.
    pub fn identify(&self, instance: InstanceId) {
        let _ = self.0.instance.set(instance);
    }

    /// A protocol machine was told this.
    pub fn input(&self, now: Instant, what: &impl Display) {
        self.push(now, EventKind::In, what);
    }

    /// A protocol machine decided this.
    pub fn action(&self, now: Instant, what: &impl Display) {
        self.push(now, EventKind::Out, what);
    }

    /// Something went wrong: it is kept as the last fault, and all there is goes to a file, on a thread of its own.
    pub fn fault(&self, now: Instant, what: &impl Display) {
        self.push(now, EventKind::Fault, what);
        let why = what.to_string();
        {
            let mut state = self.lock();
            state.fault = Some((why.clone(), now));
            if state.writing {
                state.again = Some(why);
                return;
            }
            state.writing = true;
        }
        let this = self.clone();
        let writer = thread::Builder::new().name("km-recorder".to_owned());
        if let Err(error) = writer.spawn(move || this.write_all(why)) {
            warn!(%error, "no thread to dump the flight recorder");
            self.lock().writing = false;
        }
    }

    /// The last fault and how long ago it was.
    #[must_use]
    pub fn last_fault(&self, now: Instant) -> Option<Fault> {
        let state = self.lock();
        let (what, at) = state.fault.as_ref()?;
        let age = now.saturating_duration_since(*at);
        Some(Fault { what: what.clone(), age_ms: millis(age) })
    }

    /// What is in it now.
    #[must_use]
    pub fn recording(&self) -> Recording {
        self.take(None)
    }

    /// Writes what is in it to a file before it returns; for the way out of a process. Nothing is written if nothing was
    /// recorded.
    pub fn dump_now(&self, why: &str) {
        if !self.lock().ring.is_empty() {
            self.write(why);
        }
    }

    fn write_all(&self, mut why: String) {
        loop {
            self.write(&why);
            let mut state = self.lock();
            match state.again.take() {
                Some(next) => why = next,
                None => {
                    state.writing = false;
                    return;
                }
            }
        }
    }

    fn write(&self, why: &str) {
        let recording = self.take(Some(why.to_owned()));
        match dump::write(&self.0.dir, clock::unix_millis(), &recording) {
            Ok(path) => info!(path = %path.display(), why, "the flight recorder was dumped"),
            Err(error) => {
                warn!(dir = %self.0.dir.display(), %error, "the flight recorder could not be dumped");
            }
        }
    }

    fn take(&self, why: Option<String>) -> Recording {
        let state = self.lock();
        let header = RecordingHeader {
            process: self.0.process.clone(),
            cell: self.0.cell.clone(),
            instance: self.0.instance.get().copied(),
            pid: std::process::id(),
            started_unix_ms: self.0.origin_unix_ms,
            why,
            missing: state.ring.gone(),
        };
        Recording { header, events: state.ring.events() }
    }

    fn push(&self, now: Instant, kind: EventKind, what: &dyn Display) {
        let at = now.saturating_duration_since(self.0.origin);
        self.lock().ring.push(u64::try_from(at.as_micros()).unwrap_or(u64::MAX), kind, what);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn recorder(dir: &Path, origin: Instant) -> Recorder {
        Recorder::new("stage0", CellId::default(), dir.to_owned(), origin, 1_000)
    }

    fn dumps(dir: &Path) -> Vec<String> {
        let read =
            |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(entry.ok()?.path()).ok();
        std::fs::read_dir(dir).map(|entries| entries.filter_map(read).collect()).unwrap_or_default()
    }

    #[test]
    fn a_fault_is_dumped_with_what_came_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let now = Instant::now();
        let recorder = recorder(dir.path(), now);
        recorder.input(now + Duration::from_millis(5), &"infer call 12");
        recorder.fault(now + Duration::from_millis(9), &"rank 1: no beat for 800 ms");
        let end = Instant::now() + Duration::from_secs(10);
        let written = |dumps: &[String]| dumps.iter().any(|dump| dump.contains("infer call 12"));
        while !written(&dumps(dir.path())) {
            assert!(Instant::now() < end, "{:?}", dumps(dir.path()));
            thread::yield_now();
        }
        let fault = recorder.last_fault(now + Duration::from_millis(1_009)).unwrap();
        assert_eq!((fault.what.as_str(), fault.age_ms), ("rank 1: no beat for 800 ms", 1_000));
    }

    #[test]
    fn a_process_that_recorded_nothing_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = recorder(dir.path(), Instant::now());
        recorder.dump_now("nats: refused");
        assert!(dumps(dir.path()).is_empty());
        recorder.action(Instant::now(), &"hello");
        recorder.dump_now("fenced");
        assert!(dumps(dir.path())[0].contains("fenced"));
    }

    #[test]
    fn a_recording_counts_from_the_start_of_the_process() {
        let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
        let recorder = recorder(dir.path(), now);
        let instance = InstanceId::random();
        recorder.identify(instance);
        recorder.action(now + Duration::from_micros(2_500), &"send hello");
        let recording = recorder.recording();
        assert_eq!((recording.header.instance, recording.header.started_unix_ms), (Some(instance), 1_000));
        assert_eq!((recording.events[0].ms, recording.events[0].kind), (2.5, EventKind::Out));
    }
}
