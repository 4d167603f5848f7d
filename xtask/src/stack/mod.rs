//! A stack of child processes: started in order, their logs shown, what dies started again, all of it stopped together.

mod backoff;
mod http;
mod logs;
mod ports;
mod process;
mod readiness;
pub(crate) mod services;
pub(crate) mod signals;
mod supervisor;

pub(crate) use ports::{free_ports, is_free};
pub(crate) use readiness::{Readiness, Watch};
pub(crate) use supervisor::{Refusal, Supervisor};
