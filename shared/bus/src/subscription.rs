//! A bounded subscription: what does not fit is dropped and counted, what is stale is never seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use contract::{Error, codec};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::handle::RawSubscription;
use crate::link::Link;
use crate::wire;

/// One received message.
#[derive(Clone, Debug)]
pub struct Inbound {
    pub subject: String,
    pub payload: Bytes,
    pub received: Instant,
    generation: u64,
    version: Result<(), Error>,
}

impl Inbound {
    /// # Errors
    /// `unsupported_version` if the sender speaks another contract, `malformed` naming the field that is wrong.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Error> {
        self.version.clone()?;
        codec::decode(&self.payload)
    }
}

/// Ends when dropped.
pub struct Subscription {
    queue: mpsc::Receiver<Inbound>,
    link: Arc<Link>,
    lagged: Arc<AtomicU64>,
    discarded: u64,
    forward: AbortHandle,
}

impl Subscription {
    pub(crate) fn start(raw: RawSubscription, link: Arc<Link>, capacity: usize) -> Self {
        let (tx, queue) = mpsc::channel(capacity.max(1));
        let lagged = Arc::new(AtomicU64::new(0));
        let forward = tokio::spawn(forward(raw, tx, Arc::clone(&link), Arc::clone(&lagged))).abort_handle();
        Self { queue, link, lagged, discarded: 0, forward }
    }

    /// The next message that is not stale. `None` once the connection is closed for good or the broker has refused
    /// the subject; it waits for as long as there is nothing, so give it a deadline where that matters. Cancel safe.
    pub async fn next(&mut self) -> Option<Inbound> {
        loop {
            let inbound = self.queue.recv().await?;
            if self.link.fresh(inbound.generation) {
                return Some(inbound);
            }
            self.discarded += 1;
        }
    }

    /// Messages dropped because the queue was full.
    #[must_use]
    pub fn lagged(&self) -> u64 {
        self.lagged.load(Ordering::Relaxed)
    }

    /// Messages not shown because they arrived before a reconnect or a stall.
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.discarded
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.forward.abort();
    }
}

async fn forward(
    mut raw: RawSubscription,
    queue: mpsc::Sender<Inbound>,
    link: Arc<Link>,
    lagged: Arc<AtomicU64>,
) {
    while let Some(message) = raw.next().await {
        let inbound = Inbound {
            subject: message.subject.to_string(),
            version: wire::check_version(message.headers.as_ref()),
            payload: message.payload,
            received: Instant::now(),
            generation: link.generation(),
        };
        match queue.try_send(inbound) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                lagged.fetch_add(1, Ordering::Relaxed);
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
    }
}
