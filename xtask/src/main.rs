//! `cargo xtask`: everything a developer, a newcomer or CI does with this repository.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use xtask::layout::Layout;
use xtask::{gpu_bundle, harness, outcome, setup, tests, up};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Set up, run and test kinemesh", version)]
struct Cli {
    /// The checkout to work in. Default: the one that this program was built from.
    #[arg(long, global = true, value_name = "FOLDER")]
    root: Option<PathBuf>,
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check the tools, fetch libtorch and nats-server, make the broker's credentials.
    Setup(setup::Options),
    /// Write the broker's credentials into a folder, and nothing else (for containers).
    Credentials {
        #[arg(long, value_name = "FOLDER")]
        dir: PathBuf,
    },
    /// Build and run the whole stack on this machine until Ctrl-C.
    Up(up::Options),
    /// Build everything and run all tests.
    Test(tests::Options),
    /// Build what tests/gpu/run needs and put it into one folder, for a machine that has a GPU and no toolchain.
    GpuBundle(gpu_bundle::Options),
    /// Measure frames a second and the phases of a chunk, as JSON lines and a table; or a part by itself, which is named
    /// first: `bench generator`, and what else `bench help` lists.
    Bench(harness::Options),
    /// Kill every process of a stack while a viewer watches, or hurt it in every way, and say what it cost.
    Faults(harness::Options),
    /// Hurt a stack at random for minutes, and say what became of its memory, descriptors and sessions.
    Soak(harness::Options),
    /// Measure how often the demo model shows what it was asked for, through all services.
    Score(harness::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let layout = Layout::new(cli.root);
    let result = match cli.task {
        Task::Setup(options) => setup::run(&layout, options),
        Task::Credentials { dir } => setup::credentials::write(&dir),
        Task::Up(options) => up::run(&layout, &options),
        Task::Test(options) => tests::run(&layout, &options),
        Task::GpuBundle(options) => gpu_bundle::run(&layout, &options),
        Task::Bench(options) => harness::run(&layout, "kinemesh-bench", Some("chunk"), &options),
        Task::Faults(options) => harness::run(&layout, "kinemesh-bench", Some("faults"), &options),
        Task::Soak(options) => harness::run(&layout, "kinemesh-soak", None, &options),
        Task::Score(options) => harness::run(&layout, "kinemesh-score", None, &options),
    };
    outcome::exit_code(result)
}
