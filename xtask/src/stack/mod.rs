//! A stack of child processes: started in order, their logs shown, what dies started again, all of it stopped together.

mod backoff;
mod http;
mod logs;
mod ports;
mod process;
mod readiness;
mod services;
pub mod signals;
mod supervisor;

pub use backoff::Backoff;
pub use ports::{free_ports, is_free};
pub use process::{Phase, Spec};
pub use readiness::{Readiness, Watch};
pub use services::Stack;
pub use supervisor::{CONFIGURATION, Refusal, Supervisor};
