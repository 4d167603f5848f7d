//! What operators see of a session.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use contract::event::{ChunkTimings, SessionState};
use contract::ids::{Incarnation, SessionId};
use contract::ops::SessionReport;

use crate::history::Position;

#[derive(Clone)]
pub(crate) struct Shown(Arc<Mutex<(SessionReport, Option<ChunkTimings>)>>);

impl Shown {
    pub(crate) fn new(session: SessionId, incarnation: Incarnation) -> Self {
        let report = SessionReport {
            session,
            incarnation: incarnation.0,
            state: SessionState::Starting,
            chunk_index: 0,
            cache_epoch: 0,
            fps: 0.0,
        };
        Self(Arc::new(Mutex::new((report, None))))
    }

    fn lock(&self) -> MutexGuard<'_, (SessionReport, Option<ChunkTimings>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn report(&self) -> SessionReport {
        self.lock().0.clone()
    }

    pub(crate) fn state(&self, state: SessionState) {
        self.lock().0.state = state;
    }

    /// Of the chunk that was sent last.
    pub(crate) fn timings(&self) -> Option<ChunkTimings> {
        self.lock().1
    }

    pub(crate) fn sent(&self, timings: ChunkTimings) {
        self.lock().1 = Some(timings);
    }

    pub(crate) fn chunk(&self, position: &Position, fps: f64) {
        let report = &mut self.lock().0;
        report.chunk_index = position.chunk_index.0;
        report.cache_epoch = position.cache_epoch.0;
        report.fps = fps as f32;
    }
}
