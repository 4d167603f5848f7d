//! One child process of a test, killed with it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::stack::Spec;

use crate::wait;

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
pub struct Process {
    spec: Spec,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it with its output in a file of `dir`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(spec: &Spec, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{}.log", spec.name));
        let file = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.args)
            .envs(spec.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {} ({})", spec.name, spec.program.display()))?;
        Ok(Self { spec: spec.clone(), child, log })
    }

    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        // SAFETY: kill has no preconditions; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(pid, signal.number()) };
    }

    /// Its exit status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours can be waited for")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it lives longer than `within`.
    pub async fn exit(&mut self, within: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.spec.name);
        let cell = std::cell::RefCell::new(&mut self.child);
        wait::until(&what, within, || async { cell.borrow_mut().try_wait().expect("our child") }).await
    }

    /// For a failing test to show: never for a test to decide by.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Kill also ends a stopped process. Both fail only if it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
