//! Ends the process when its grace is over, whatever is wedged.

use std::io;
use std::thread;
use std::time::Duration;

use crate::shutdown::StopState;

const LOOK: Duration = Duration::from_millis(20);

/// Starts the thread. From then on it takes no lock and allocates nothing: it reads atomics, sleeps, and calls `_exit`.
pub(crate) fn start(state: &'static StopState) -> io::Result<()> {
    thread::Builder::new().name("km-watchdog".to_owned()).spawn(move || {
        loop {
            thread::sleep(LOOK);
            if state.grace_left() == Some(Duration::ZERO) {
                say(b"the shutdown grace is over: leaving at once\n");
                exit_now(state.code().unwrap_or(1));
            }
        }
    })?;
    Ok(())
}

/// Ends the process without destructors: those of a GPU runtime may wait for peers that are gone.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// Writes to stderr only if that cannot block.
fn say(text: &[u8]) {
    let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid pollfd; the write reads `text.len()` bytes of `text`.
    unsafe {
        if libc::poll(&raw mut stderr, 1, 0) == 1 && stderr.revents & libc::POLLOUT != 0 {
            let _ = libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        }
    }
}
