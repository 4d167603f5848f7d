//! How often the demo model shows what it was asked for: through all services, read off the pixels that a viewer decodes.
//!
//! A [`Wish`] is a scene and its words, drawn from a seed; a [`Theatre`] is a cell that shows them; the modules are what can
//! be asked about it, one each, and every one answers with a [`Section`].

pub mod change;
pub mod forms;
pub mod long;
pub mod section;
pub mod shown;
mod theatre;
pub mod truth;
mod wish;
pub mod world_sizes;

pub use section::{Row, Section};
pub use theatre::{LOOKED_AT, Theatre, looked_at};
pub use wish::{Wish, wishes};
