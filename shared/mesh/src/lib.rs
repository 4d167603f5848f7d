//! The mesh protocol as pure state machines: [`leader::Leader`], [`worker::Worker`] and [`controller::Controller`].
//!
//! An input and the current instant go in, actions come out. Nothing here reads a clock, opens a socket or touches a
//! tensor; the services carry out the actions and feed back what came of them, and decide nothing themselves.

pub mod activity;
pub mod controller;
pub mod digests;
pub mod exit;
pub mod invariants;
pub mod leader;
pub mod lease;
pub mod liveness;
pub mod parity;
pub mod recent;
pub mod slots;
pub mod timing;
mod trace;
pub mod worker;

pub use activity::Activity;
pub use digests::DigestCache;
pub use exit::ExitCode;
pub use recent::Recent;
pub use timing::Timing;

/// Names a request that waits for an answer; chosen by the shell, opaque here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);
