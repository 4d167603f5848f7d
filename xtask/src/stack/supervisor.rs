//! Keeps the processes of a stack running, and stops them together.
//!
//! What ends is started again after a growing wait, whatever its exit code, with one exception: code 2 says that a
//! setting is wrong, which no restart cures, so it ends the stack.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::backoff::Backoff;
use super::process::{Phase, Process, Spec};
use super::signals;
use crate::console::Console;

/// The exit code that stops the stack.
pub const CONFIGURATION: i32 = 2;
/// Everything is gone this long after the wish to stop: SIGKILL then takes what is left.
const GRACE: Duration = Duration::from_millis(4500);
/// A phase of the stop that takes longer no longer holds up the next one.
const PHASE: Duration = Duration::from_millis(900);
const TICK: Duration = Duration::from_millis(20);

/// A process said that its configuration is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub process: String,
    /// Its last line that says why.
    pub message: String,
}

#[derive(Debug)]
enum State {
    Running(Process),
    /// To be started again at that instant.
    Waiting(Instant),
}

#[derive(Debug)]
struct Member {
    spec: Spec,
    prefix: String,
    backoff: Backoff,
    state: State,
}

#[derive(Debug)]
pub struct Supervisor {
    members: Vec<Member>,
    console: Arc<Console>,
    name_width: usize,
}

impl Supervisor {
    /// `name_width` aligns the prefixes of the logs.
    pub fn new(console: Arc<Console>, name_width: usize) -> Self {
        Self { members: Vec::new(), console, name_width }
    }

    /// Starts a process and keeps it running from then on. Call it from the main thread: children die with the thread
    /// that started them.
    ///
    /// # Errors
    /// If it cannot be started at all.
    pub fn start(&mut self, spec: Spec) -> Result<()> {
        let prefix = self.console.prefix(&spec.name, self.name_width, self.members.len());
        let process = Process::start(&spec, &self.console, &prefix)?;
        self.members.push(Member {
            spec,
            prefix,
            backoff: Backoff::default(),
            state: State::Running(process),
        });
        Ok(())
    }

    /// Looks after every process once: notices ends, starts again what is due.
    ///
    /// # Errors
    /// If a process cannot be started again, or its state cannot be read.
    pub fn tick(&mut self, now: Instant) -> Result<Option<Refusal>> {
        for member in &mut self.members {
            match &mut member.state {
                State::Running(process) => {
                    let Some(status) = process.ended()? else { continue };
                    let name = &member.spec.name;
                    if status.code() == Some(CONFIGURATION) {
                        let message = process.last_line().unwrap_or_else(|| describe(status));
                        return Ok(Some(Refusal { process: name.clone(), message }));
                    }
                    let wait = member.backoff.after(process.lived());
                    self.console.line(&format!(
                        "{} {}; starting it again in {wait:?}",
                        member.prefix,
                        describe(status)
                    ));
                    member.state = State::Waiting(now + wait);
                }
                State::Waiting(due) if now >= *due => {
                    member.state =
                        State::Running(Process::start(&member.spec, &self.console, &member.prefix)?);
                }
                State::Waiting(_) => {}
            }
        }
        Ok(None)
    }

    /// Stops everything, phase by phase, and returns when nothing runs any more: after [`GRACE`] at the latest, or
    /// sooner if the user asks again.
    pub fn stop(mut self) {
        let asked = signals::requests();
        let end = Instant::now() + GRACE;
        for phase in Phase::ALL {
            self.signal(libc::SIGTERM, |member| member == phase);
            let phase_end = (Instant::now() + PHASE).min(end);
            while self.any_runs(|member| member == phase)
                && Instant::now() < phase_end
                && signals::requests() == asked
            {
                thread::sleep(TICK);
            }
        }
        while self.any_runs(|_| true) && Instant::now() < end && signals::requests() == asked {
            thread::sleep(TICK);
        }
        for member in &self.members {
            if matches!(member.state, State::Running(_)) {
                self.console.line(&format!("{} did not stop in time: killed", member.prefix));
            }
        }
        self.signal(libc::SIGKILL, |_| true);
        let reaped = Instant::now() + PHASE;
        while self.any_runs(|_| true) && Instant::now() < reaped {
            thread::sleep(TICK);
        }
    }

    fn signal(&self, signal: libc::c_int, wanted: impl Fn(Phase) -> bool) {
        for member in self.members.iter().filter(|member| wanted(member.spec.phase)) {
            if let State::Running(process) = &member.state {
                process.signal(signal);
            }
        }
    }

    /// Whether one of them is alive. Those that are not are forgotten: nothing is started again while stopping.
    fn any_runs(&mut self, wanted: impl Fn(Phase) -> bool) -> bool {
        self.members.retain_mut(|member| match &mut member.state {
            State::Running(process) => !matches!(process.ended(), Ok(Some(_))),
            State::Waiting(_) => false,
        });
        self.members.iter().any(|member| wanted(member.spec.phase))
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => format!("ended ({status})"),
    }
}
