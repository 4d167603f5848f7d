//! Rank 0 of a mesh: forms it, admits the controller's calls and leads every run.

mod board;
mod config;
mod driver;
mod endpoints;
mod key;
mod link;
mod liveness;
mod service;
mod status;

use runtime::lifecycle::{self, About};

fn main() {
    let about = About {
        name: "mesh-leader",
        version: env!("CARGO_PKG_VERSION"),
        about: "rank 0 of a kinemesh mesh: forms it and leads every run",
    };
    lifecycle::main(about, service::run)
}
