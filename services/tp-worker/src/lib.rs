//! One rank of a mesh other than 0: joins, loads its shard, and runs what the leader says.

mod board;
mod config;
mod driver;
mod endpoints;
mod liveness;
mod service;
mod status;

pub use config::WorkerSettings;
pub use service::{run, run_with};

/// What this build is called where ranks compare themselves.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");
