//! What the user sees: lines, and one status line that is a spinner on a terminal and plain lines elsewhere.

use std::env;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// ANSI colours of the log prefixes: readable on dark and light backgrounds.
const PALETTE: [u8; 6] = [36, 35, 33, 32, 34, 31];

#[derive(Debug)]
pub struct Console {
    spinner: ProgressBar,
    interactive: bool,
    coloured: bool,
    status: Mutex<String>,
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    pub fn new() -> Self {
        let interactive = std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            spinner.set_style(style);
        }
        let coloured = interactive && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { spinner, interactive, coloured, status: Mutex::new(String::new()) }
    }

    /// Prints a line of a service, or of our own, above the status.
    pub fn line(&self, text: &str) {
        self.spinner.suspend(|| {
            // A closed pipe on our side is no reason to stop the stack.
            let _ = writeln!(std::io::stdout().lock(), "{text}");
        });
    }

    /// Shows what is being waited for; an unchanged text is not repeated.
    pub fn status(&self, text: &str) {
        let Ok(mut current) = self.status.lock() else { return };
        if *current == text {
            return;
        }
        text.clone_into(&mut current);
        if self.interactive {
            self.spinner.set_draw_target(ProgressDrawTarget::stderr());
            self.spinner.enable_steady_tick(Duration::from_millis(120));
            self.spinner.set_message(text.to_owned());
        } else {
            self.line(text);
        }
    }

    /// Takes the status away.
    pub fn clear_status(&self) {
        if let Ok(mut current) = self.status.lock() {
            current.clear();
        }
        self.spinner.disable_steady_tick();
        self.spinner.set_draw_target(ProgressDrawTarget::hidden());
    }

    /// `name |` padded to `width`, coloured by its index where colours are wanted.
    pub fn prefix(&self, name: &str, width: usize, index: usize) -> String {
        if self.coloured {
            format!("\x1b[{}m{name:width$} |\x1b[0m", PALETTE[index % PALETTE.len()])
        } else {
            format!("{name:width$} |")
        }
    }
}

/// Bytes for people.
pub fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes / (1024 * 1024))
}
