//! Times the models by themselves, without services: one JSON line with all conditions for each measurement.
//!
//! `cargo run --release -p kinemesh-wan --example model_bench -- generator --model wan-1.3b --device cuda:0`
//!
//! Warm-up chunks are excluded and counted in the line. Times are of whole chunks, the device's work included.

mod ceiling;
mod generator;
mod gpu;

use clap::{Parser, Subcommand};

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Chunks of one stream.
    Generator(generator::Options),
}

fn main() -> Result<(), Failure> {
    match Args::parse().bench {
        Bench::Generator(options) => println!("{}", generator::measure(&options)?),
    }
    Ok(())
}
