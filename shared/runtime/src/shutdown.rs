//! The request to stop: a token for async code, atomics for the watchdog.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use contract::{Budget, Deadline};
use tokio_util::sync::CancellationToken;

use crate::exit::ExitCode;

const NOT_ASKED: i32 = -1;

/// What a signal handler may write and the watchdog reads. Atomics only.
pub(crate) struct StopState {
    /// Exit code once asked to stop, else [`NOT_ASKED`].
    code: AtomicI32,
    /// Monotonic nanoseconds at the first request; 0 before it.
    asked_ns: AtomicU64,
    pub(crate) grace_ns: AtomicU64,
}

impl StopState {
    pub(crate) const fn new() -> Self {
        Self {
            code: AtomicI32::new(NOT_ASKED),
            asked_ns: AtomicU64::new(0),
            grace_ns: AtomicU64::new(5_000_000_000),
        }
    }

    /// Async-signal-safe. The first failure is kept; a failure replaces an ordinary stop, never the reverse.
    pub(crate) fn ask(&self, code: ExitCode) {
        let _ = self.asked_ns.compare_exchange(0, monotonic_ns().max(1), Ordering::AcqRel, Ordering::Acquire);
        let _ = self.code.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
            (now == NOT_ASKED || now == ExitCode::Stopped.code()).then_some(code.code())
        });
    }

    /// Exit code, once stopping was asked for.
    pub(crate) fn code(&self) -> Option<i32> {
        let code = self.code.load(Ordering::Acquire);
        (code != NOT_ASKED).then_some(code)
    }

    /// What is left of the grace; `None` while nobody asked to stop.
    pub(crate) fn grace_left(&self) -> Option<Duration> {
        let asked = self.asked_ns.load(Ordering::Acquire);
        let end = asked.saturating_add(self.grace_ns.load(Ordering::Acquire));
        (asked != 0).then(|| Duration::from_nanos(end.saturating_sub(monotonic_ns())))
    }
}

/// Async-signal-safe.
fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let (s, ns) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    s * 1_000_000_000 + ns
}

/// The process's one request to stop; clones are the same.
#[derive(Clone)]
pub struct Shutdown {
    state: &'static StopState,
    token: CancellationToken,
    reason: Arc<OnceLock<String>>,
}

impl Shutdown {
    pub(crate) fn new(state: &'static StopState) -> Self {
        Self { state, token: CancellationToken::new(), reason: Arc::default() }
    }

    /// Asks the process to stop; from here on its grace runs. The first failure decides the exit code.
    pub fn begin(&self, code: ExitCode, reason: impl Into<String>) {
        self.state.ask(code);
        let _ = self.reason.set(reason.into());
        self.token.cancel();
    }

    /// Cancelled when the process is to stop; make children of it for parts.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Resolves when the process is to stop.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Why, once requested: the first reason given.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// When the process will be gone at the latest; while nobody asked, the whole grace from now. Steps on the way out
    /// should end well before it.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        let grace = Duration::from_nanos(self.state.grace_ns.load(Ordering::Acquire));
        Deadline::after(Instant::now(), Budget::from(self.state.grace_left().unwrap_or(grace)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_while_stopping_replaces_exit_0_and_the_first_failure_is_kept() {
        let shutdown = Shutdown::new(Box::leak(Box::new(StopState::new())));
        assert!(shutdown.state.code().is_none() && shutdown.state.grace_left().is_none());
        shutdown.begin(ExitCode::Stopped, "SIGTERM");
        assert_eq!(shutdown.state.code(), Some(0));
        shutdown.begin(ExitCode::Orphaned, "no leader");
        shutdown.begin(ExitCode::Failed, "panic");
        shutdown.begin(ExitCode::Stopped, "SIGTERM");
        assert_eq!(shutdown.state.code(), Some(3));
        assert_eq!(shutdown.reason(), Some("SIGTERM"));
        assert!(shutdown.is_requested());
    }
}
