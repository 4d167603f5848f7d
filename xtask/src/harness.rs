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

/// Runs a program, with the subcommand `default` unless the options begin with another.
///
/// # Errors
/// If set-up, the build or the program fails.
pub fn run(layout: &Layout, program: &str, default: Option<&str>, options: &Options) -> Result<()> {
    let built = layout.binaries().join(program);
    let args = arguments(default, &options.args);
    let help = args.iter().any(|arg| arg == "--help" || arg == "-h");
    if help && built.exists() {
        return command::run(Command::new(built).args(args));
    }
    setup::run(layout, setup::Options::default())?;
    command::run(command::cargo().current_dir(layout.root()).args(["build", "--release", "--workspace"]))?;
    command::run(Command::new(built).current_dir(layout.root()).args(args))
}

fn arguments(default: Option<&str>, given: &[OsString]) -> Vec<OsString> {
    let named = given.first().is_some_and(|first| !first.as_encoded_bytes().starts_with(b"-"));
    let default = default.filter(|_| !named).map(OsString::from);
    default.into_iter().chain(given.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::arguments;

    #[test]
    fn the_subcommand_may_be_left_out() {
        let arguments = |given: &[&str]| {
            let given: Vec<_> = given.iter().map(Into::into).collect();
            arguments(Some("chunk"), &given)
        };
        assert_eq!(arguments(&[]), ["chunk"]);
        assert_eq!(arguments(&["--chunks", "9"]), ["chunk", "--chunks", "9"]);
        assert_eq!(arguments(&["vae", "--chunks", "9"]), ["vae", "--chunks", "9"]);
    }
}
