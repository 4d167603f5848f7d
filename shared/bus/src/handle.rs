//! A subscription as the client gives it, plus the refusal that the broker may tell later (permissions can change while
//! it exists).

use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use tokio::sync::broadcast;
use tokio::time::timeout;
use tracing::error;

use crate::bus::refusal_of;
use crate::link::{Refused, Violation};

pub(crate) struct RawSubscription {
    subscriber: Subscriber,
    subject: [String; 1],
    violations: broadcast::Receiver<Violation>,
}

impl RawSubscription {
    pub(crate) fn new(
        subscriber: Subscriber,
        subject: &str,
        violations: broadcast::Receiver<Violation>,
    ) -> Self {
        Self { subscriber, subject: [subject.to_owned()], violations }
    }

    /// The next message; `None` once the connection is closed or the broker has refused the subject. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        tokio::select! {
            message = self.subscriber.next() => message,
            violation = refusal_of(&mut self.violations, Refused::Subscribe, &self.subject) => {
                error!(text = violation.text, "the broker ended a subscription");
                None
            }
        }
    }

    /// Tells the broker that nothing more is wanted; waits no longer than `wait`.
    pub(crate) async fn unsubscribe(&mut self, wait: Duration) {
        // When it fails the connection is gone, and the subscription with it.
        let _ = timeout(wait, self.subscriber.unsubscribe()).await;
    }

    /// The same, and what had reached this process by then is still given; `None` follows it.
    pub(crate) async fn drain(&mut self, wait: Duration) {
        let _ = timeout(wait, self.subscriber.drain()).await;
    }
}
