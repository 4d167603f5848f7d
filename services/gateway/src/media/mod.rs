//! Everything between an offer and RTP packets.

pub(crate) mod bitrate;
pub(crate) mod feedback;
pub(crate) mod offer;
pub(crate) mod peer;
pub(crate) mod ports;
pub(crate) mod reassembly;
pub(crate) mod rtp;
