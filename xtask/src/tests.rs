//! `cargo xtask test`: everything that has to be there for the tests, then all of them.

use std::ffi::OsString;

use anyhow::Result;

use crate::command::{self, succeeds};
use crate::layout::Layout;
use crate::setup;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Passed on to `cargo nextest run`, or to `cargo test` where nextest is not installed.
    #[arg(last = true)]
    args: Vec<OsString>,
}

/// # Errors
/// What failed: setting up, building, or a test, with the exit code of what failed.
pub fn run(layout: &Layout, options: &Options) -> Result<()> {
    setup::run(layout, setup::Options::default())?;
    setup::ensure(&setup::BROWSER)?;
    setup::clients::fetch(layout)?;
    // The system tests start the services' binaries, which a test build alone does not make.
    command::run(command::cargo().current_dir(layout.root()).args(["build", "--release", "--workspace"]))?;
    let mut test = command::cargo();
    test.current_dir(layout.root());
    if succeeds("cargo-nextest", &["nextest", "--version"]) {
        test.args(["nextest", "run", "--release", "--workspace"]).args(&options.args);
    } else {
        println!("cargo-nextest is not installed: running the tests with cargo test, one at a time");
        test.args(["test", "--release", "--workspace"]).args(&options.args);
        if !options.args.iter().any(|arg| arg == "--") {
            test.arg("--");
        }
        // A system test needs the whole machine.
        test.arg("--test-threads=1");
    }
    command::run(&mut test)
}
