//! The life of a kinemesh process: configuration, tracing, metrics, health endpoints, signals, watchdog, exit codes.
//!
//! A service's `main` is one call of [`lifecycle::main`]: parse arguments, load the configuration, run the body until
//! it ends or is asked to, and leave within the grace whatever is wedged.

pub mod broker;
pub mod clock;
pub mod config;
pub mod exit;
pub mod http;
pub mod lifecycle;
pub mod metric_names;
pub mod metrics;
mod panics;
pub mod recorder;
pub mod shutdown;
mod signals;
pub mod telemetry;
pub mod vitals;
mod watchdog;

pub use self::config::{Common, ConfigArgs, ConfigError, Loaded, ServiceConfig, Source};
pub use exit::{ExitCode, Outcome};
pub use http::{HealthServer, Readiness};
pub use lifecycle::Context;
pub use recorder::Recorder;
pub use shutdown::Shutdown;
