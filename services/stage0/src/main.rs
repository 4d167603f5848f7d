//! Stage 0 of a cell: sessions, prompts, VAE and video coding.

mod attendance;
mod call_budget;
mod cell;
mod config;
mod context;
mod envelope;
mod events;
mod heartbeat;
mod history;
mod keeper;
mod losses;
mod mailbox;
mod media;
mod mesh_client;
mod models;
mod ops;
mod output;
mod pacer;
mod pictures;
mod prompt;
mod queue;
mod service;
mod session;
mod sessions;
mod settings;
mod status;
mod stored;
mod studio;
mod telemetry;

use runtime::lifecycle::{self, About};

fn main() {
    let about = About {
        name: "stage0",
        version: env!("CARGO_PKG_VERSION"),
        about: "Stage 0 of a kinemesh cell: sessions, prompts, VAE and video coding",
    };
    lifecycle::main(about, service::run)
}
