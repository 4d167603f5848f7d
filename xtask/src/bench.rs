//! `cargo xtask bench`: where the time of a chunk goes.

use std::ffi::OsString;

use anyhow::Result;

use crate::command;
use crate::layout::Layout;
use crate::setup;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Passed on to the benchmark: `-- --help` lists what it takes.
    #[arg(last = true)]
    args: Vec<OsString>,
}

/// # Errors
/// If set-up, the build or the benchmark fails.
pub fn run(layout: &Layout, options: &Options) -> Result<()> {
    setup::run(layout, setup::Options::default())?;
    command::run(command::cargo().current_dir(layout.root()).args(["build", "--release", "--workspace"]))?;
    let mut bench = std::process::Command::new(layout.binaries().join("kinemesh-bench"));
    command::run(bench.current_dir(layout.root()).args(&options.args))
}
