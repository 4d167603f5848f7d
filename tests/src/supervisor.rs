//! The processes of a cell. Ends are noticed as they happen, and a supervised cell starts again what ended, with the
//! policy of `cargo xtask up`: after a growing wait, unless its configuration is wrong.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use xtask::stack::{Backoff, CONFIGURATION, Phase, Spec};

use crate::process::{Process, Signal, log_tail};

const TICK: Duration = Duration::from_millis(20);

/// One life of a process that is over.
#[derive(Clone, Debug)]
pub struct End {
    pub name: String,
    pub pid: u32,
    pub status: ExitStatus,
}

#[derive(Debug)]
enum State {
    Running(Process),
    /// To be started again at that instant.
    Waiting(Instant),
    Over,
}

#[derive(Debug)]
struct Member {
    spec: Spec,
    backoff: Backoff,
    state: State,
}

#[derive(Debug)]
struct Table {
    dir: PathBuf,
    restarts: bool,
    members: BTreeMap<String, Member>,
    ends: Vec<End>,
}

/// Everything is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Supervisor {
    table: Arc<Mutex<Table>>,
    over: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Processes write their output to files in `dir`.
    pub(crate) fn new(dir: PathBuf, restarts: bool) -> Self {
        let table = Table { dir, restarts, members: BTreeMap::new(), ends: Vec::new() };
        let table = Arc::new(Mutex::new(table));
        let over = Arc::new(AtomicBool::new(false));
        let keeper = {
            let (table, over) = (Arc::clone(&table), Arc::clone(&over));
            thread::spawn(move || {
                while !over.load(Ordering::Acquire) {
                    lock(&table).tick(Instant::now());
                    thread::sleep(TICK);
                }
            })
        };
        Self { table, over, keeper: Some(keeper) }
    }

    /// Starts a process, also one of that name that ended.
    ///
    /// # Panics
    /// If it cannot be started, or runs already.
    pub(crate) fn start(&self, spec: Spec) {
        let mut table = lock(&self.table);
        let running = table.members.get(&spec.name).is_some_and(|m| matches!(m.state, State::Running(_)));
        assert!(!running, "{} is running", spec.name);
        let process = Process::start(&spec, &table.dir).expect("a process");
        let member = Member { spec, backoff: Backoff::default(), state: State::Running(process) };
        table.members.insert(member.spec.name.clone(), member);
    }

    /// It is not started again when it ends.
    pub(crate) fn abandon(&self, name: &str) {
        let mut table = lock(&self.table);
        if let Some(mut member) = table.members.remove(name)
            && let State::Running(process) = &mut member.state
        {
            process.signal(Signal::Kill);
            let status = process.wait();
            table.ends.push(End { name: name.to_owned(), pid: process.pid(), status });
        }
    }

    /// Whether there was a process to signal. A fault of the test's own is its process's first: the wait before a restart
    /// grows with those it has by itself.
    pub(crate) fn signal(&self, name: &str, signal: Signal) -> bool {
        let mut table = lock(&self.table);
        let Some(member) = table.members.get_mut(name) else { return false };
        let State::Running(process) = &member.state else { return false };
        process.signal(signal);
        member.backoff = Backoff::default();
        true
    }

    /// Id of the process that runs under this name now.
    pub(crate) fn pid(&self, name: &str) -> Option<u32> {
        match &lock(&self.table).members.get(name)?.state {
            State::Running(process) => Some(process.pid()),
            State::Waiting(_) | State::Over => None,
        }
    }

    pub(crate) fn pids(&self) -> BTreeMap<String, u32> {
        let table = lock(&self.table);
        let running = |(name, member): (&String, &Member)| match &member.state {
            State::Running(process) => Some((name.clone(), process.pid())),
            State::Waiting(_) | State::Over => None,
        };
        table.members.iter().filter_map(running).collect()
    }

    /// Every end so far, in order.
    pub(crate) fn ends(&self) -> Vec<End> {
        lock(&self.table).ends.clone()
    }

    /// Starts nothing again from here on, and asks the processes of a phase to stop.
    pub(crate) fn ask_to_stop(&self, phase: Phase) {
        let mut table = lock(&self.table);
        table.restarts = false;
        for member in table.members.values_mut().filter(|member| member.spec.phase == phase) {
            match &member.state {
                State::Running(process) => process.signal(Signal::Term),
                State::Waiting(_) | State::Over => member.state = State::Over,
            }
        }
    }

    pub(crate) fn logs(&self) -> String {
        let table = lock(&self.table);
        let one = |name: &String| format!("--- {name}\n{}\n", log_tail(&table.dir, name));
        table.members.keys().map(one).collect()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        // Processes are killed when they are dropped.
        lock(&self.table).members.clear();
    }
}

impl Table {
    fn tick(&mut self, now: Instant) {
        for (name, member) in &mut self.members {
            match &mut member.state {
                State::Running(process) => {
                    let Some(status) = process.ended() else { continue };
                    self.ends.push(End { name: name.clone(), pid: process.pid(), status });
                    let again = self.restarts && status.code() != Some(CONFIGURATION);
                    let wait = member.backoff.after(process.lived());
                    member.state = if again { State::Waiting(now + wait) } else { State::Over };
                }
                State::Waiting(due) if now >= *due && self.restarts => {
                    let process = Process::start(&member.spec, &self.dir).expect("a process");
                    member.state = State::Running(process);
                }
                State::Waiting(_) | State::Over => {}
            }
        }
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}
