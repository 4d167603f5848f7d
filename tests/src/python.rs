//! Clients in other languages: scripts of `tests/clients` that print one JSON object as their last line.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::cell::layout;

#[derive(Debug)]
pub struct Script {
    name: String,
    child: Child,
    stdout: BufReader<ChildStdout>,
}

/// Starts `tests/clients/{name}` with these arguments.
///
/// # Panics
/// If the Python environment of `cargo xtask test` is missing.
#[must_use]
pub fn start(name: &str, args: &[&str]) -> Script {
    let layout = layout();
    let mut child = Command::new(layout.venv().join("bin/python"))
        .arg(layout.root().join("tests/clients").join(name))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the Python environment of `cargo xtask test`");
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    Script { name: name.to_owned(), child, stdout }
}

/// Runs a script to its end and returns the object it printed.
///
/// # Panics
/// If it fails, prints no JSON, or takes longer than `within`.
pub async fn run(name: &str, args: &[&str], within: Duration) -> Value {
    start(name, args).finish(within).await
}

impl Script {
    /// Waits until the script says `line`, and nothing else before it.
    ///
    /// # Panics
    /// If it says something else, ends, or takes longer than `within`.
    pub async fn says(&mut self, line: &str, within: Duration) {
        let mut said = String::new();
        let read = tokio::time::timeout(within, self.stdout.read_line(&mut said)).await;
        assert!(matches!(read, Ok(Ok(_))), "{} said nothing within {within:?}", self.name);
        if said.trim_end() == line {
            return;
        }
        let mut complaint = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = tokio::time::timeout(within, stderr.read_to_string(&mut complaint)).await;
        }
        panic!("{} said {said:?}: {line:?} is expected\n{complaint}", self.name);
    }

    /// # Panics
    /// As [`run`].
    pub async fn finish(mut self, within: Duration) -> Value {
        let mut stderr = self.child.stderr.take().expect("piped");
        let (mut out, mut err) = (String::new(), String::new());
        let all = async {
            let (a, b) = tokio::join!(self.stdout.read_to_string(&mut out), stderr.read_to_string(&mut err));
            (a, b, self.child.wait().await)
        };
        let ended = tokio::time::timeout(within, all).await;
        let Ok((Ok(_), Ok(_), Ok(status))) = ended else {
            panic!("{} did not end within {within:?}", self.name);
        };
        assert!(status.success(), "{} failed ({status}):\n{out}\n{err}", self.name);
        let last = out.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{}: not JSON ({e}): {out}\n{err}", self.name))
    }
}
