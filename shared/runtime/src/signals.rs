//! SIGTERM and SIGINT. The handler itself arms the watchdog, so that even a process whose threads are all wedged leaves
//! in time; a thread then tells the async side.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use crate::exit::ExitCode;
use crate::shutdown::{Shutdown, StopState};

/// The process's state: a signal handler can only reach statics.
pub(crate) static PROCESS: StopState = StopState::new();
static WAKE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(signal: libc::c_int) {
    PROCESS.ask(ExitCode::Stopped);
    let number = u64::try_from(signal).unwrap_or(1);
    // SAFETY: write is async-signal-safe; an eventfd takes 8 bytes. errno is kept for the interrupted code.
    unsafe {
        let errno = *libc::__errno_location();
        let _ = libc::write(WAKE.load(Ordering::Acquire), (&raw const number).cast(), 8);
        *libc::__errno_location() = errno;
    }
}

pub(crate) fn install(shutdown: Shutdown) -> io::Result<()> {
    // SAFETY: eventfd takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    WAKE.store(fd, Ordering::Release);
    thread::Builder::new().name("km-signals".to_owned()).spawn(move || {
        loop {
            let mut number = 0_u64;
            // SAFETY: reads 8 bytes into an 8-byte integer.
            let read = unsafe { libc::read(fd, (&raw mut number).cast(), 8) };
            if read == 8 {
                let name = if number == 2 { "SIGINT" } else { "SIGTERM" };
                shutdown.begin(ExitCode::Stopped, format!("asked to stop by {name}"));
            }
        }
    })?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: a zeroed sigaction is valid, and the handler calls async-signal-safe functions only.
        let installed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if installed != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
