//! Tracing to stderr, as text or JSON, through a bounded queue: a supervisor that stops reading never stops a service.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{ConfigError, LogFormat, LogSection};
use crate::metric_names;

const LINES: usize = 4096;

enum Job {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// The way to the log.
#[derive(Clone)]
pub struct Log(SyncSender<Job>);

impl Log {
    /// Waits until what was logged before is written, at most `wait`.
    pub fn flush(&self, wait: Duration) {
        let (done, written) = sync_channel(1);
        if self.0.try_send(Job::Flush(done)).is_ok() {
            let _ = written.recv_timeout(wait);
        }
    }
}

/// Installs the process's subscriber.
///
/// # Errors
/// `log.filter` cannot be parsed, or a subscriber is installed already.
pub fn init(log: &LogSection, service: &str) -> Result<Log, ConfigError> {
    let filter = EnvFilter::try_new(&log.filter)
        .map_err(|e| ConfigError::new("log.filter", format!("{:?}: {e}", log.filter)))?;
    let (queue, jobs) = sync_channel(LINES);
    thread::Builder::new()
        .name("km-log".to_owned())
        .spawn(move || write_jobs(&jobs))
        .map_err(|e| ConfigError::new("log", format!("log thread: {e}")))?;
    let writer = Log(queue);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer.clone());
    let installed = match log.format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
    };
    installed.map_err(|e| ConfigError::new("log", e.to_string()))?;
    tracing::debug!(service, "telemetry started");
    Ok(writer)
}

fn write_jobs(jobs: &Receiver<Job>) {
    for job in jobs {
        match job {
            Job::Line(line) => drop(io::stderr().write_all(&line)),
            Job::Flush(done) => drop(done.try_send(())),
        }
    }
}

/// One event on its way to the queue.
pub struct Line<'a> {
    log: &'a Log,
    bytes: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { log: self, bytes: Vec::new() }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = Job::Line(std::mem::take(&mut self.bytes));
        if self.log.0.try_send(line).is_err() {
            metrics::counter!(metric_names::LOG_LINES_DROPPED).increment(1);
        }
    }
}
