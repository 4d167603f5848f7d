//! Clients in other languages: scripts of `tests/clients` that print one JSON object as their last line.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::cell::layout;

#[derive(Debug)]
pub struct Script {
    name: String,
    child: Child,
}

/// Starts `tests/clients/{name}` with these arguments.
///
/// # Panics
/// If the Python environment of `cargo xtask test` is missing.
#[must_use]
pub fn start(name: &str, args: &[&str]) -> Script {
    let layout = layout();
    let child = Command::new(layout.venv().join("bin/python"))
        .arg(layout.root().join("tests/clients").join(name))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the Python environment of `cargo xtask test`");
    Script { name: name.to_owned(), child }
}

/// Runs a script to its end and returns the object it printed.
///
/// # Panics
/// If it fails, prints no JSON, or takes longer than `within`.
pub async fn run(name: &str, args: &[&str], within: Duration) -> Value {
    start(name, args).finish(within).await
}

impl Script {
    /// # Panics
    /// As [`run`].
    pub async fn finish(mut self, within: Duration) -> Value {
        let mut stdout = self.child.stdout.take().expect("piped");
        let mut stderr = self.child.stderr.take().expect("piped");
        let (mut out, mut err) = (String::new(), String::new());
        let all = async {
            let (a, b) = tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err));
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
