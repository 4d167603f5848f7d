//! What the gateway knows about its cell, learned from `cell.{cell}.status` and never asked for.

mod view;
mod watch;

pub(crate) use view::Snapshot;
pub(crate) use watch::CellWatch;
