//! The log pump: what a child prints, line by line, behind its prefix.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::console::Console;

/// A longer line is printed in pieces, so that a child that prints no line ends costs no memory.
const MAX_LINE: u64 = 16 * 1024;
/// Lines kept to explain an end.
const KEPT: usize = 20;

/// The level in a line of the services' logs, and of the broker's.
const INFORMATION: &str = " INFO ";
const BROKER_INFORMATION: &str = " [INF] ";
/// The broker says it at every start. The passwords are random, of this checkout alone, in files that only their owner can read.
const PLAIN_PASSWORDS: &str = "[WRN] Plaintext passwords detected";

/// The last lines that a process printed.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    fn push(&self, line: &str) {
        if let Ok(mut lines) = self.0.lock() {
            if lines.len() == KEPT {
                lines.pop_front();
            }
            lines.push_back(line.to_owned());
        }
    }

    /// The last line that is not empty, nor a log's mere information: a service says that it leaves after it said why.
    pub(super) fn last(&self) -> Option<String> {
        let says_why =
            |line: &&String| !line.trim().is_empty() && !line.contains(INFORMATION) && is_shown(line);
        self.0.lock().ok()?.iter().rev().find(says_why).cloned()
    }
}

/// Whether it is for the user of a stack: the broker's mere information is not, a screen full at each start.
fn is_shown(line: &str) -> bool {
    !line.contains(BROKER_INFORMATION) && !line.contains(PLAIN_PASSWORDS)
}

/// Shows a stream until it ends, from a thread of its own.
pub(super) fn pump(
    stream: impl Read + Send + 'static,
    console: Arc<Console>,
    prefix: String,
    tail: Tail,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        loop {
            let mut bytes = Vec::new();
            match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let line = String::from_utf8_lossy(&bytes);
            let line = line.trim_end_matches(['\n', '\r']);
            tail.push(line);
            if is_shown(line) {
                console.line(&format!("{prefix} {line}"));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{KEPT, Tail, is_shown};

    #[test]
    fn of_the_broker_only_what_is_wrong_is_shown() {
        let line = |text: &str| format!("[748] 2026/01/01 00:00:00.786869 {text}");
        assert!(!is_shown(&line("[INF] Starting nats-server")));
        assert!(!is_shown(&line("[WRN] Plaintext passwords detected, use nkeys or bcrypt")));
        for wrong in ["[ERR] Error listening on port: 127.0.0.1:4222", "[WRN] Slow consumer", "[FTL] no"] {
            assert!(is_shown(&line(wrong)));
        }
        assert!(is_shown("2026-01-01T00:00:00Z  INFO runtime::lifecycle: starting"));
    }

    #[test]
    fn an_end_is_explained_by_the_error_and_not_by_what_is_logged_after_it() {
        let tail = Tail::default();
        tail.push("2026-01-01T00:00:00Z ERROR runtime::lifecycle: http.bind: cannot listen on nowhere:1");
        tail.push("2026-01-01T00:00:00Z  INFO runtime::lifecycle: leaving code=2");
        assert!(tail.last().unwrap().contains("cannot listen on nowhere:1"));
    }

    #[test]
    fn the_tail_is_bounded_and_skips_empty_lines() {
        let tail = Tail::default();
        for line in 0..100 {
            tail.push(&line.to_string());
        }
        tail.push("  ");

        assert_eq!(tail.last().as_deref(), Some("99"));
        assert_eq!(tail.0.lock().unwrap().len(), KEPT);
    }
}
