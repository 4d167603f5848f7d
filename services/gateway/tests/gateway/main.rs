//! The gateway against a real broker, real WebRTC clients and a cell that answers as stage0 does, with access units of
//! real encoders.

#![allow(clippy::unwrap_used, clippy::large_futures, reason = "a test that cannot go on should end")]

mod harness;

mod offers;
mod origins;
mod readiness;
mod sessions;
mod steering;
