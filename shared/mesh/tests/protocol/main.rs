//! The state machines, each alone and together in simulated time.
#![allow(clippy::unwrap_used, reason = "helpers of tests may")]

mod controller;
mod leader;
mod schedules;
mod sim;
mod worker;
