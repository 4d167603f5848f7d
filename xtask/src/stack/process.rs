//! One child process: what it is, and one life of it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::logs::{self, Tail};
use crate::command::die_with_parent;
use crate::console::Console;

/// How long the log of a process that ended is still read: a grandchild may hold its pipe open.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// When a process is asked to stop, first to last: those that serve people go before what they stand on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Gateway,
    Stage0,
    /// All ranks together: one that stops alone is a fault to the others.
    Mesh,
    Broker,
}

impl Phase {
    pub const ALL: [Self; 4] = [Self::Gateway, Self::Stage0, Self::Mesh, Self::Broker];
}

/// What a process is: enough to start it any number of times.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub phase: Phase,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub env: Vec<(String, OsString)>,
}

/// One life of a process.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    started: Instant,
    tail: Tail,
    pumps: Vec<JoinHandle<()>>,
    /// How it ended and when that was seen.
    end: Option<(ExitStatus, Instant)>,
}

impl Process {
    /// Starts it in a process group of its own, so that a terminal's Ctrl-C is ours to hand out, and bound to our life.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn start(spec: &Spec, console: &Arc<Console>, prefix: &str) -> Result<Self> {
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.args)
            .envs(spec.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        die_with_parent(&mut command, libc::SIGKILL);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {} ({})", spec.name, spec.program.display()))?;
        let tail = Tail::default();
        let mut pumps = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            pumps.push(logs::pump(stdout, Arc::clone(console), prefix.to_owned(), tail.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            pumps.push(logs::pump(stderr, Arc::clone(console), prefix.to_owned(), tail.clone()));
        }
        Ok(Self { child, started: Instant::now(), tail, pumps, end: None })
    }

    pub(super) fn lived(&self) -> Duration {
        self.started.elapsed()
    }

    /// How it ended, once it has and its last lines have been printed.
    ///
    /// # Errors
    /// If the operating system cannot say.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.end.is_none() {
            self.end = self.child.try_wait()?.map(|status| (status, Instant::now()));
        }
        let printed = self.pumps.iter().all(JoinHandle::is_finished);
        Ok(self.end.filter(|(_, seen)| printed || seen.elapsed() >= LAST_WORDS).map(|(status, _)| status))
    }

    /// The last line that it printed, but for mere information.
    pub(super) fn last_line(&self) -> Option<String> {
        self.tail.last()
    }

    /// Sends a signal to the process, unless it has been waited for and no longer owns its id.
    pub(super) fn signal(&self, signal: libc::c_int) {
        if self.end.is_some() {
            return;
        }
        if let Ok(pid) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: kill has no preconditions; the id is that of our child, which has not been waited for.
            unsafe { libc::kill(pid, signal) };
        }
    }
}
