//! The NATS client of every service: requests that carry their time left, endpoints that refuse expired work before
//! it starts, services that anyone can discover (ADR-32), and in JetStream the leader's claim and what sessions need to go
//! on elsewhere.
//!
//! What holds, whatever the broker does:
//! - Nothing is published while disconnected: the caller gets `broker_unavailable` at once.
//! - Everything received before a reconnect, or before a stall of this process, is discarded ([`ConnectionState`]'s
//!   generation rises); requests among it are answered `broker_unavailable`.
//! - Every wait has a deadline, every queue a bound; what a full queue drops is counted.
//!
//! A broker account needs, beside its own subjects: publish and subscribe on its inbox, `_INBOX_<user>.>` (`_INBOX.>`
//! without a user), for replies and for the marker that [`Bus::subscribe`] waits for; publish on the inboxes of whoever
//! asks it; and subscribe on `$SRV.>` when it registers a [`Service`].

mod bucket;
mod bus;
pub mod census;
mod config;
mod connect;
pub mod continuations;
mod discovery;
mod endpoint;
mod handle;
pub mod leader_key;
mod link;
pub mod presence;
pub mod recordings;
mod service;
mod subscription;
mod trace;
mod wire;

pub use bus::Bus;
pub use census::Census;
pub use config::{BusConfig, Secret};
pub use endpoint::{Endpoint, Request};
pub use link::ConnectionState;
pub use service::{Service, ServiceInfo};
pub use subscription::{Inbound, Subscription};
pub use trace::current_traceparent;
pub use wire::{DEFAULT_BUDGET, MAX_BUDGET};
