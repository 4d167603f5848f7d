//! The gateway: HTTP, the page, SDP, ICE, DTLS and RTP end here. Sessions live in stage0, reached over NATS; pixels
//! never come by, only compressed access units.

mod app;
mod broker;
mod cell;
mod config;
mod error;
mod http;
mod media;
mod ops;
mod origins;
mod serve;
mod session;
mod status;

pub use config::{Config, GatewayConfig, WebRtcConfig};
pub use http::openapi_json;
pub use serve::{Running, run};

/// What this build is called in status messages and `/health`.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");
