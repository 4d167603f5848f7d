//! The gateway against a real broker, real WebRTC clients and a cell that answers as stage0 does, with access units of
//! real encoders.

mod harness;

mod offers;
mod readiness;
mod sessions;
mod steering;
