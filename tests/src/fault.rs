//! The honest faults, as things that happen to a process of a cell.

use std::fmt;
use std::time::{Duration, Instant};

use crate::cell::{BROKER, Cell};
use crate::process::Signal;

/// Half a period of a process that runs half of the time.
const DUTY: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Terminate,
    /// SIGSTOP, and SIGCONT so much later.
    Pause(Duration),
    /// Stopped half of the time, for so long.
    Slow(Duration),
    /// Its connections to the broker are cut.
    Cut,
    /// Nothing crosses its connections to the broker for so long.
    Freeze(Duration),
    /// Its connections to the broker are cut and refused for so long.
    Isolate(Duration),
}

impl Fault {
    /// Whether the process itself ends of it, and is another one afterwards.
    #[must_use]
    pub fn ends_the_process(self) -> bool {
        matches!(self, Self::Kill | Self::Terminate)
    }

    /// Makes it happen; returns when it is over.
    pub async fn strike(self, cell: &Cell, process: &str) {
        match self {
            Self::Kill => cell.signal(process, Signal::Kill),
            Self::Terminate => cell.signal(process, Signal::Term),
            Self::Pause(time) => {
                cell.signal(process, Signal::Stop);
                tokio::time::sleep(time).await;
                cell.signal(process, Signal::Cont);
            }
            Self::Slow(time) => {
                let end = Instant::now() + time;
                while Instant::now() < end {
                    cell.signal_if_running(process, Signal::Stop);
                    tokio::time::sleep(DUTY).await;
                    cell.signal_if_running(process, Signal::Cont);
                    tokio::time::sleep(DUTY).await;
                }
            }
            Self::Cut => cell.proxy(process).cut(),
            Self::Freeze(time) => {
                cell.proxy(process).freeze();
                tokio::time::sleep(time).await;
                cell.proxy(process).resume();
            }
            Self::Isolate(time) => {
                cell.proxy(process).close();
                tokio::time::sleep(time).await;
                cell.proxy(process).reopen();
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill => f.write_str("SIGKILL"),
            Self::Terminate => f.write_str("SIGTERM"),
            Self::Pause(time) => write!(f, "stopped for {} s", time.as_secs_f32()),
            Self::Slow(time) => write!(f, "half speed for {} s", time.as_secs_f32()),
            Self::Cut => f.write_str("broker connections cut"),
            Self::Freeze(time) => write!(f, "broker connections frozen for {} s", time.as_secs_f32()),
            Self::Isolate(time) => write!(f, "away from the broker for {} s", time.as_secs_f32()),
        }
    }
}

/// Processes of a cell of two ranks, the broker last.
pub const PROCESSES: [&str; 5] = ["gateway", "stage0", "leader", "worker1", BROKER];

const WHILE: Duration = Duration::from_secs(3);

/// What can happen to a service.
pub const SERVICE_FAULTS: [Fault; 7] = [
    Fault::Kill,
    Fault::Terminate,
    Fault::Pause(WHILE),
    Fault::Slow(WHILE),
    Fault::Cut,
    Fault::Freeze(WHILE),
    Fault::Isolate(WHILE),
];

/// What can happen to the broker.
pub const BROKER_FAULTS: [Fault; 2] = [Fault::Kill, Fault::Pause(Duration::from_secs(5))];
