//! Trains the small model that ships: a video VAE, a text encoder and a causal transformer of the very architecture that
//! [`wan`] serves, on the scenes of [`demo_world`].
//!
//! The networks here are those of `wan` for batches and with gradients; what they export is loaded by `wan` and compared
//! with them in the tests.

pub mod attributes;
pub mod average;
pub mod bank;
pub mod budget;
pub mod codec;
pub mod conditional;
pub mod dit;
pub mod look;
pub mod orthogonal;
pub mod parameters;
pub mod sampler;
pub mod samples;
pub mod scenes;
pub mod score;
pub mod served;
pub mod sheet;
pub mod stage_model;
pub mod stage_start;
pub mod stage_text;
pub mod stage_vae;
pub mod text;
pub mod tokens;
pub mod vae;
