//! A mesh of real processes with a real broker, commanded as stage0 commands it.
#![allow(clippy::unwrap_used, reason = "helpers of tests may")]

mod chunks;
mod harness;
mod refusals;
