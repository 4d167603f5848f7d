//! From a live communicator to a freed one.

use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Instant;

use super::communicator::Communicator;
use crate::CollectiveError;

/// A communicator and how it ends: the first reason stands, and a thread of its own frees it, because NCCL's abort has no
/// bound.
#[derive(Debug)]
pub(super) struct Life {
    /// Held for NCCL's calls alone, which return at once.
    communicator: Mutex<Option<Communicator>>,
    reason: OnceLock<String>,
    freed: Mutex<bool>,
    changed: Condvar,
}

impl Life {
    pub(super) fn new(communicator: Communicator) -> Arc<Self> {
        Arc::new(Self {
            communicator: Mutex::new(Some(communicator)),
            reason: OnceLock::new(),
            freed: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    /// Calls NCCL, unless the group has ended.
    pub(super) fn with<T>(
        &self,
        call: impl FnOnce(&Communicator) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        self.check()?;
        let communicator = self.communicator.lock().unwrap_or_else(PoisonError::into_inner);
        match &*communicator {
            Some(communicator) => call(communicator),
            // Taken between the check and the lock.
            None => {
                self.check().and(Err(CollectiveError::Aborted { reason: "the group has ended".to_owned() }))
            }
        }
    }

    /// # Errors
    /// `Aborted`, with the first reason, once the group has ended.
    pub(super) fn check(&self) -> Result<(), CollectiveError> {
        match self.reason.get() {
            Some(reason) => Err(CollectiveError::Aborted { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Ends the group. Never blocks.
    pub(super) fn end(self: &Arc<Self>, reason: &str) {
        if self.reason.set(reason.to_owned()).is_err() {
            return;
        }
        let life = Arc::clone(self);
        let spawned = thread::Builder::new().name("km-nccl-abort".to_owned()).spawn(move || life.free());
        if spawned.is_err() {
            self.free();
        }
    }

    fn free(&self) {
        let communicator = self.communicator.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(communicator) = communicator {
            communicator.abort();
        }
        *self.freed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits until an ended group is freed; whether it is.
    pub(super) fn freed(&self, by: Instant) -> bool {
        let freed = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = by.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(freed, wait, |freed| !*freed);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
