//! The model: causal diffusion transformer with KV cache, flow-match scheduler, UMT5 text encoder, streaming VAE, prompt
//! blending and checkpoint loading for the Wan 2.1 family, in tensor-parallel form.
//!
//! Semantics are those of the reference data in `tests/goldens`, whose README is the specification. Nothing here knows
//! of sessions, messages or networks: tensors come in, tensors go out, and ranks meet through
//! [`collectives::Collective`].

pub mod blend;
pub mod config;
pub mod dit;
pub mod generator;
mod kernels;
pub mod memory;
pub mod noise;
pub mod rope;
pub mod scheduler;
pub mod text;
pub mod vae;
pub mod weights;
