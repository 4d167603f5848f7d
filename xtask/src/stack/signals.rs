//! SIGINT, SIGTERM and SIGHUP ask the stack to stop. The handler only counts; the supervisor's loop looks.

use std::sync::atomic::{AtomicUsize, Ordering};

static REQUESTS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_signal: libc::c_int) {
    REQUESTS.fetch_add(1, Ordering::Relaxed);
}

/// From here on the signals no longer end this program. Children start with the default actions again (exec).
pub fn listen() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: `count` only touches an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, count as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// How often the user asked. Twice means: at once.
pub fn requests() -> usize {
    REQUESTS.load(Ordering::Relaxed)
}
