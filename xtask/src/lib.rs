//! What `cargo xtask` is made of. The system tests start the same processes with it that a user gets.

pub mod command;
pub mod console;
pub mod gpu_bundle;
pub mod harness;
pub mod layout;
pub mod outcome;
pub mod setup;
pub mod stack;
pub mod tests;
pub mod up;
