//! One rank of a mesh other than 0: joins, loads its shard, and runs what the leader says.

mod board;
mod config;
mod driver;
mod endpoints;
mod liveness;
mod service;
mod status;

use runtime::lifecycle::{self, About};

fn main() {
    let about = About {
        name: "tp-worker",
        version: env!("CARGO_PKG_VERSION"),
        about: "a rank of a kinemesh mesh: holds one shard and runs in lockstep",
    };
    lifecycle::main(about, service::run)
}
