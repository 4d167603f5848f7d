//! The harness of the system tests: a real nats-server and the four real binaries, on random loopback ports.
//!
//! A test reads like a story: given a [`Cell`], when something happens, then a condition holds within its time. Waits are on
//! conditions ([`wait::until`]); contract deadlines get one slack factor ([`wait::slack`]).

pub mod cell;
pub mod fault;
mod feed;
pub mod frames;
pub mod http;
pub mod leftovers;
pub mod meddling;
pub mod operator;
pub mod ordeal;
pub mod process;
pub mod proxy;
pub mod python;
pub mod score;
pub mod screening;
pub mod session;
pub mod supervisor;
pub mod trace;
pub mod viewer;
pub mod wait;

pub use cell::{Cell, CellBuilder};
pub use fault::Fault;
pub use frames::Message;
pub use meddling::Meddler;
pub use operator::Operator;
pub use process::Signal;
pub use screening::Screening;
pub use trace::Trace;
pub use viewer::Viewer;
