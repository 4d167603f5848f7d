//! The model check: the machines themselves, with every order of deliveries and every fault within bounds.
//!
//! Time is a clock of whole steps, which moves when nothing that runs has anything left to do. A message takes no time
//! unless a fault says otherwise.

mod bounds;
mod canon;
mod graph;
mod model;
mod mutations;
mod search;
mod state;
mod tests;

use self::bounds::STEP;
pub(crate) use self::bounds::{Bounds, setup};
pub(crate) use self::search::check;
