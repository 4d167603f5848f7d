//! The Python clients of the tests (aiortc, nats-py, playwright), in the same environment that fetches the wheels.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::{lock, python};
use crate::command::run;
use crate::layout::Layout;

/// # Errors
/// If pip fails.
pub fn fetch(layout: &Layout) -> Result<()> {
    let _lock = lock(layout)?;
    let requirements = layout.client_requirements();
    let wanted = fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let stamp = layout.venv().join("clients.stamp");
    if fs::read_to_string(&stamp).is_ok_and(|present| present == wanted) {
        return Ok(());
    }
    let python = python::environment(layout)?;
    println!("fetching the Python clients of the tests into .kinemesh/venv");
    run(Command::new(python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"])
        .args(["--no-deps", "--require-hashes", "--only-binary=:all:", "-r"])
        .arg(&requirements))?;
    fs::write(stamp, wanted)?;
    Ok(())
}
