//! Messages of a subject, with the time that each came. Unlike a subscription of the product it keeps what came while this
//! process stood still: on a busy machine a test does too, and that is no fault of what it tests.

use std::time::Instant;

use bus::Bus;
use bytes::Bytes;
use contract::{Error, Reason};
use futures_util::StreamExt;
use tokio::sync::mpsc;

const QUEUE: usize = 4096;

#[derive(Debug)]
pub(crate) struct Feed(mpsc::Receiver<(Instant, Bytes)>);

impl Feed {
    /// What the broker hears on the same connection after this comes after the subscription.
    ///
    /// # Errors
    /// `broker_unavailable`.
    pub(crate) async fn start(bus: &Bus, subject: String) -> Result<Self, Error> {
        let subscribed = bus.jetstream().client().subscribe(subject).await;
        let mut messages = subscribed
            .map_err(|e| Error::new(Reason::BrokerUnavailable, "no subscription").detail(e.to_string()))?;
        let (tx, queue) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tx.closed() => return,
                    message = messages.next() => match message {
                        // Whoever does not read has no use for more.
                        Some(message) => drop(tx.try_send((Instant::now(), message.payload))),
                        None => return,
                    },
                }
            }
        });
        Ok(Self(queue))
    }

    /// The next message. None is lost if this is dropped.
    ///
    /// # Panics
    /// If the connection is closed.
    pub(crate) async fn next(&mut self) -> (Instant, Bytes) {
        self.0.recv().await.expect("a connection that lives")
    }
}
