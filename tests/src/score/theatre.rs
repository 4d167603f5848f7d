use std::time::Duration;

use bus::Bus;
use contract::session::CreateSession;
use demo_world::measure::{Meter, Seen};
use demo_world::scene::Scene;
use indicatif::ProgressBar;
use serde_json::Value;

use super::Wish;
use crate::screening::{Screening, Shown};
use crate::{Cell, viewer, wait};

/// Frames that are looked at: four chunks, most of a round of what circles.
pub const LOOKED_AT: usize = 48;
/// How long a session may be refused: the place of the one before is taken, or the machine is busy. One that was made
/// although its answer was lost ends after a minute.
const PLACE: Duration = Duration::from_secs(90);

/// A cell that serves the demo model, and the tool that reads its pictures.
pub struct Theatre {
    cell: Cell,
    bus: Bus,
    meter: Meter,
    bar: ProgressBar,
}

/// What a session of every screening is created with.
pub(super) fn creation(parameters: &Value) -> CreateSession {
    viewer::creation(parameters)
}

impl Theatre {
    /// `bar` moves by one with each chunk.
    pub async fn open(world_size: u16, bar: &ProgressBar) -> Self {
        let cell = Cell::builder().model("demo").world_size(world_size).ready().await;
        let bus = cell.bus("gateway").await;
        Self { cell, bus, meter: Meter::default(), bar: bar.clone() }
    }

    /// # Panics
    /// If stage0 refuses the session.
    pub async fn begin(&self, wish: &Wish) -> Screening {
        let (bus, cell) = (&self.bus, self.cell.id());
        wait::until("a free place for a session", PLACE, || async {
            match Screening::open(bus, &cell, creation(&wish.parameters())).await {
                Err(error) if error.retryable() => None,
                opened => Some(opened.expect("a session")),
            }
        })
        .await
    }

    /// The first chunks of a session of its own.
    pub async fn show(&self, wish: &Wish, chunks: usize) -> Vec<Shown> {
        let mut screening = self.begin(wish).await;
        let shown = self.watch(&mut screening, chunks).await;
        screening.end().await;
        shown
    }

    /// The next chunks.
    pub async fn watch(&self, screening: &mut Screening, chunks: usize) -> Vec<Shown> {
        let mut shown = Vec::new();
        while shown.len() < chunks {
            shown.push(screening.chunk().await);
            self.bar.inc(1);
        }
        shown
    }

    /// So many chunks have passed that were not watched by this.
    pub(super) fn passed(&self, chunks: usize) {
        self.bar.inc(chunks as u64);
    }

    /// Of a scene, a second object that rests is known to be there.
    #[must_use]
    pub fn look(&self, frames: &[Vec<u8>], scene: &Scene) -> Seen {
        self.meter.look(frames, scene.companion.map(|companion| companion.corner))
    }

    pub async fn close(self) {
        drop(self.bus);
        self.cell.stop().await;
    }
}

/// The last frames, as many as are looked at.
#[must_use]
pub fn looked_at(shown: &[Shown]) -> Vec<Vec<u8>> {
    let frames: Vec<Vec<u8>> = shown.iter().flat_map(|shown| shown.frames.clone()).collect();
    frames[frames.len().saturating_sub(LOOKED_AT)..].to_vec()
}
