//! Measures the parts by themselves and all of them together: one JSON line with all conditions for each measurement.
//!
//! What ran before the measurement (kernels are chosen, windows fill) is excluded, and the line says how much that was.
//! Times of a part that runs on a GPU are of the device's work, not of its launch.

mod ceiling;
mod cell;
mod chunk;
mod collective;
mod faults;
mod generator;
mod line;
mod link;
mod machine;
mod options;
mod parts;
mod power;
mod ranks;
mod statistics;
mod text;
mod vae;
mod watch;
mod work;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "kinemesh-bench", about, version)]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Steady chunks of one stream by the generator alone, on one rank or several.
    Generator(generator::Options),
    /// Decoding one chunk of a stream; and, in a line of its own, the part of it that the next chunk waits for.
    Vae(vae::Options),
    /// Encoding a prompt.
    Text(text::Options),
    /// The latents of a chunk through a link, both ways, and a small request through a real broker.
    Link(link::Options),
    /// Each call that ranks make of one another, at the sizes of a chunk.
    Collective(collective::Options),
    /// Steady chunks of one session through all services and a real broker.
    Chunk(chunk::Options),
    /// What a viewer receives over WebRTC from all services.
    Watch(watch::Options),
    /// What it costs when a process of a real stack dies or stops while a viewer watches, and what is left of it.
    Faults(faults::Options),
}

fn main() -> ExitCode {
    let result = match Args::parse().bench {
        Bench::Generator(options) => generator::run(&options),
        Bench::Vae(options) => vae::run(&options),
        Bench::Text(options) => text::run(&options),
        Bench::Link(options) => link::run(&options),
        Bench::Collective(options) => collective::run(&options),
        Bench::Chunk(options) => chunk::run(&options),
        Bench::Watch(options) => watch::run(&options),
        Bench::Faults(options) => faults::run(&options),
    };
    xtask::outcome::exit_code(result)
}
