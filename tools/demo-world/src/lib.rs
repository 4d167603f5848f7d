//! The world that the demo model is trained on: short scenes of simple shapes with exact captions, and the tool that reads
//! the attributes back from pixels.
//!
//! Pure: neither tensors nor files. A [`scene::Scene`] says what is there, [`motion::State`] where it is, [`caption`] how a
//! person would put it, [`render`] what it looks like, and [`measure`] what can be seen in a clip.

pub mod caption;
pub mod clip;
pub mod measure;
pub mod motion;
pub mod render;
pub mod scene;
pub mod shape;

/// Rows and columns of a picture, in pixels.
pub const SIDE: usize = 160;
