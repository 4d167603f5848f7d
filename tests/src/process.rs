//! One child process of a test, killed with it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xtask::command::die_with_parent;
use xtask::stack::Spec;

/// Environment of every process of a cell, and so of whatever it starts: the cell's folder.
pub(crate) const MARK: &str = "SYSTEM_TESTS_CELL";

/// How long a process may take to stand still.
const STILL: Duration = Duration::from_secs(1);

/// The honest faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Kill,
    Term,
    Stop,
    Cont,
}

impl Signal {
    fn number(self) -> libc::c_int {
        match self {
            Self::Kill => libc::SIGKILL,
            Self::Term => libc::SIGTERM,
            Self::Stop => libc::SIGSTOP,
            Self::Cont => libc::SIGCONT,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    started: Instant,
}

impl Process {
    /// Starts it with its output in a file of `dir`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start(spec: &Spec, dir: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log(dir, &spec.name))?;
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.args)
            .envs(spec.env.iter().map(|(key, value)| (key, value)))
            .env(MARK, dir)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        // Who started it may be killed before it can stop anything.
        die_with_parent(&mut command, libc::SIGKILL);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {} ({})", spec.name, spec.program.display()))?;
        Ok(Self { child, started: Instant::now() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn lived(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        // SAFETY: kill has no preconditions; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(pid, signal.number()) };
        let asked = Instant::now();
        // Its threads go on until one of them has been scheduled to take the signal.
        while signal == Signal::Stop && !self.stands_still() && asked.elapsed() < STILL {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn stands_still(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 'Z']))
    }

    /// Its exit status, once it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours can be waited for")
    }

    /// Waits for the end of a process that was killed.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("a child of ours can be waited for")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Kill also ends a stopped process. Both fail only if it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.log"))
}

/// What every life of a process printed.
///
/// # Panics
/// If it never ran.
pub(crate) fn printed(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(log(dir, name)).unwrap_or_else(|e| panic!("what {name} printed: {e}"))
}

/// What every life of a process printed last. For a failing test to show: never for a test to decide by.
pub(crate) fn log_tail(dir: &Path, name: &str) -> String {
    let text = std::fs::read_to_string(log(dir, name)).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
