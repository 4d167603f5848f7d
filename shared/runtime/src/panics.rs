//! A panic anywhere ends the process with exit code 1: a task that is gone must not look like one that is idle.

use std::panic;

use tracing::error;

use crate::exit::ExitCode;
use crate::shutdown::Shutdown;

pub(crate) fn install(shutdown: Shutdown) {
    panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed").to_owned();
        let backtrace = std::backtrace::Backtrace::capture();
        error!(thread, %backtrace, "panic: {info}");
        shutdown.begin(ExitCode::Failed, format!("panic in thread {thread}"));
    }));
}
