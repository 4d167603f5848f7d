//! The state machines, each alone, together in simulated time, and in every order within bounds.
#![allow(clippy::unwrap_used, reason = "helpers of tests may")]

mod cell;
mod check;
mod controller;
mod diagram;
mod fixtures;
mod invariants;
mod leader;
mod schedules;
mod sender;
mod shutdown;
mod sim;
mod worker;
