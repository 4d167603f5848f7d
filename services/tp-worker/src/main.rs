//! The process of a rank.

use runtime::lifecycle::{self, About};

fn main() {
    let about = About {
        name: "tp-worker",
        version: tp_worker::BUILD,
        about: "a rank of a kinemesh mesh: holds one shard and runs in lockstep",
    };
    lifecycle::main(about, tp_worker::run)
}
