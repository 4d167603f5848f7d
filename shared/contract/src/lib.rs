//! The shape of every message between kinemesh services: envelope, result, plan, parameters, errors, subjects and
//! headers. Plain data, serde only: this crate does no I/O and knows neither tokio nor torch.
//!
//! Payloads are MessagePack with named fields ([`codec`]); unknown fields are ignored, unknown versions refused.

pub mod budget;
pub mod codec;
pub mod continuation;
pub mod envelope;
pub mod error;
pub mod event;
pub mod headers;
pub mod ids;
pub mod link;
pub mod media;
pub mod model;
pub mod ops;
pub mod params;
pub mod recording;
pub mod session;
pub mod status;
pub mod subjects;
pub mod tensor;
pub mod tp;

pub use budget::{Budget, Deadline};
pub use error::{Class, Error, Reason};
pub use ids::{
    CacheEpoch, CallId, CellId, ChunkIndex, Digest, Generation, Incarnation, InstanceId, LeaseEpoch,
    LinkSlot, MeshEpoch, Rank, SessionId, SessionSlot, WorldSize,
};

/// Version of every message in this crate. A peer that speaks another one is refused by name.
pub const CONTRACT_VERSION: u16 = 1;
