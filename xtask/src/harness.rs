//! `cargo xtask bench`, `faults`, `soak` and `score`: programs of the test harness, which start a stack of their own.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::command;
use crate::layout::Layout;
use crate::setup;

#[derive(Clone, Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// Passed on to the program: `--help` lists what it takes.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// # Errors
/// If set-up, the build or the program fails.
pub fn run(layout: &Layout, program: &str, options: &Options) -> Result<()> {
    let built = layout.binaries().join(program);
    let help = options.args.iter().any(|arg| arg == "--help" || arg == "-h");
    if help && built.exists() {
        return command::run(Command::new(built).args(&options.args));
    }
    setup::run(layout, setup::Options::default())?;
    command::run(command::cargo().current_dir(layout.root()).args(["build", "--release", "--workspace"]))?;
    command::run(Command::new(built).current_dir(layout.root()).args(&options.args))
}
