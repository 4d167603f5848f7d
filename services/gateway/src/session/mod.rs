//! Sessions: one peer connection each, one session at stage0 each, ended together.

mod actor;
mod channel;
mod continuity;
mod line;
mod lives;
mod messages;
mod registry;
mod resume;
mod start;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use contract::error::ClientError;
use contract::event::{ChunkReport, SessionState};
use contract::model::Size;
use contract::params::Parameters;

pub(crate) use registry::{Command, Handle, Sessions};
pub(crate) use resume::ResumeToken;
pub(crate) use start::{Request, start};

/// What others may read of a running session.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) started: Instant,
    pub(crate) size: Size,
    pub(crate) frames_out: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) gaps: AtomicU64,
    pub(crate) frames_dropped: AtomicU64,
    pub(crate) kbps: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    parameters: Parameters,
    /// Highest number of an accepted update.
    update: u64,
    state: Option<SessionState>,
    last_chunk: Option<Box<ChunkReport>>,
    last_error: Option<ClientError>,
}

impl Shared {
    pub(crate) fn new(size: Size, parameters: Parameters) -> Self {
        Self {
            started: Instant::now(),
            size,
            frames_out: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
            frames_dropped: AtomicU64::new(0),
            kbps: AtomicU64::new(0),
            inner: Mutex::new(Inner { parameters, ..Inner::default() }),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// stage0 took these parameters.
    pub(crate) fn accepted(&self, parameters: Parameters, update: u64) {
        self.with(|inner| {
            inner.update = inner.update.max(update);
            inner.parameters.merge(parameters);
            // A one-shot that is done is no setting.
            inner.parameters.reset_cache = None;
        });
    }

    /// A transition that has ended is the prompt.
    pub(crate) fn transition_ended(&self) {
        self.with(|inner| {
            if let Some(transition) = inner.parameters.transition.take() {
                inner.parameters.prompts = Some(transition.target_prompts);
            }
        });
    }

    pub(crate) fn parameters(&self) -> Parameters {
        self.with(|inner| inner.parameters.clone())
    }

    /// Everything accepted so far, and the number of the last update in it.
    pub(crate) fn acknowledged(&self) -> (Parameters, u64) {
        self.with(|inner| (inner.parameters.clone(), inner.update))
    }

    pub(crate) fn set_state(&self, state: SessionState, error: Option<ClientError>) {
        self.with(|inner| {
            inner.state = Some(state);
            if error.is_some() {
                inner.last_error = error;
            }
        });
    }

    pub(crate) fn state(&self) -> (Option<SessionState>, Option<ClientError>) {
        self.with(|inner| (inner.state, inner.last_error.clone()))
    }

    pub(crate) fn set_chunk(&self, report: Box<ChunkReport>) {
        self.with(|inner| inner.last_chunk = Some(report));
    }

    pub(crate) fn last_chunk(&self) -> Option<Box<ChunkReport>> {
        self.with(|inner| inner.last_chunk.clone())
    }

    pub(crate) fn count_unit(&self, bytes: usize) {
        self.frames_out.fetch_add(1, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_transition_becomes_the_prompt_and_a_reset_is_not_remembered() {
        let parameters = |value| Parameters::from_json(&value).unwrap();
        let size = Size { width: 128, height: 128 };
        let shared = Shared::new(size, parameters(json!({"prompts": [{"text": "a"}], "base_seed": 1})));
        shared.accepted(
            parameters(json!({"reset_cache": true,
            "transition": {"target_prompts": [{"text": "b"}], "num_steps": 2}})),
            4,
        );
        shared.transition_ended();
        let (parameters, update) = shared.acknowledged();
        assert_eq!(
            (serde_json::to_value(parameters).unwrap(), update),
            (json!({"prompts": [{"text": "b", "weight": 1.0}], "base_seed": 1}), 4)
        );
    }
}
