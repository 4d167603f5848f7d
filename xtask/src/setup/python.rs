//! The Python environment that fetches the wheels and runs the test clients.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::command::{run, succeeds};
use crate::layout::Layout;

/// Its interpreter. The environment is made if it is missing or broken.
///
/// # Errors
/// If it cannot be made.
pub(super) fn environment(layout: &Layout) -> Result<PathBuf> {
    let python = layout.venv().join("bin/python");
    if !succeeds(&python.to_string_lossy(), &["-m", "pip", "--version"]) {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(layout.venv()))?;
    }
    Ok(python)
}
