//! What is known about the connection: up or down, its generation, permission errors, and the markers that tell when
//! the broker has processed everything sent before.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_nats::client::Statistics;
use contract::status::STATUS_TIMEOUT_MS;
use contract::{Error, Reason};
use tokio::sync::{broadcast, oneshot, watch};

/// How late its own tick may be before a process counts as stalled.
pub(crate) const STALL: Duration = Duration::from_millis(500);
/// After this process lost the broker, or stood still, all others get so long to be heard again before they can be missed.
const SETTLED: Duration = Duration::from_millis(STATUS_TIMEOUT_MS);
/// Permission errors a waiting request may lag behind before it misses one (it then ends by its deadline).
const VIOLATION_BACKLOG: usize = 64;

/// The generation rises at each reconnect and after each stall; what arrived under an older one is discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    Connected { generation: u64 },
    Disconnected { generation: u64 },
}

impl ConnectionState {
    #[must_use]
    pub fn is_connected(self) -> bool {
        matches!(self, Self::Connected { .. })
    }

    #[must_use]
    pub fn generation(self) -> u64 {
        let (Self::Connected { generation } | Self::Disconnected { generation }) = self;
        generation
    }
}

/// The broker refused this account to publish or subscribe to `subject`.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) refused: Refused,
    pub(crate) subject: String,
    pub(crate) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Publish,
    Subscribe,
}

impl Violation {
    /// `Permissions Violation for Publish to "a.b"`: the subject is what stands in the first pair of quotes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        if !lower.contains("permissions violation") {
            return None;
        }
        let refused = if lower.contains("for subscription") { Refused::Subscribe } else { Refused::Publish };
        let subject = text.split('"').nth(1)?.to_owned();
        Some(Self { refused, subject, text: text.to_owned() })
    }

    pub(crate) fn error(&self) -> Error {
        let message = match self.refused {
            Refused::Publish => format!("this account may not publish to {}", self.subject),
            Refused::Subscribe => format!("this account may not subscribe to {}", self.subject),
        };
        Error::new(Reason::PermissionDenied, message).detail(self.text.clone())
    }
}

pub(crate) struct Link {
    started: Instant,
    statistics: OnceLock<Arc<Statistics>>,
    stalls: AtomicU64,
    /// Discards under way; more than one when stalls come close together.
    discarding: AtomicU64,
    last_tick_ms: AtomicU64,
    slow_consumer_events: AtomicU64,
    state: watch::Sender<ConnectionState>,
    /// The newest generation that was noticed, and when.
    era: Mutex<(u64, Instant)>,
    violations: broadcast::Sender<Violation>,
    markers: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    next_marker: AtomicU64,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            statistics: OnceLock::new(),
            stalls: AtomicU64::new(0),
            discarding: AtomicU64::new(0),
            last_tick_ms: AtomicU64::new(0),
            slow_consumer_events: AtomicU64::new(0),
            state: watch::Sender::new(ConnectionState::Disconnected { generation: 0 }),
            era: Mutex::new((0, Instant::now())),
            violations: broadcast::Sender::new(VIOLATION_BACKLOG),
            markers: Mutex::default(),
            next_marker: AtomicU64::new(0),
        }
    }

    pub(crate) fn attach(&self, statistics: Arc<Statistics>) {
        // Called once, by connect, for the one client of this link.
        let _ = self.statistics.set(statistics);
    }

    /// Connections established so far, the first one included. Counted by the client *before* the first message of
    /// a connection can be read, so a stamp taken from it never mistakes an old message for a new one.
    pub(crate) fn connects(&self) -> u64 {
        self.statistics.get().map_or(0, |s| s.connects.load(Ordering::Acquire))
    }

    pub(crate) fn generation(&self) -> u64 {
        self.connects() + self.stalls.load(Ordering::Acquire)
    }

    /// Whether a message stamped with `generation` may still be acted on. A late tick makes it stale even before the
    /// tick itself has run: after a stop, messages are often read first.
    pub(crate) fn fresh(&self, generation: u64) -> bool {
        self.discarding.load(Ordering::Acquire) == 0
            && generation == self.generation()
            && !self.tick_is_late()
    }

    pub(crate) fn stale_error(&self) -> Error {
        let message = "the request arrived before a reconnect or a stall of the service and was discarded";
        Error::new(Reason::BrokerUnavailable, message)
    }

    pub(crate) fn tick(&self) {
        self.last_tick_ms.store(self.now_ms(), Ordering::Release);
    }

    pub(crate) fn tick_is_late(&self) -> bool {
        let late = self.now_ms().saturating_sub(self.last_tick_ms.load(Ordering::Acquire));
        u128::from(late) > STALL.as_millis()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn begin_discarding(&self) {
        self.discarding.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn end_discarding(&self) {
        self.stalls.fetch_add(1, Ordering::AcqRel);
        self.discarding.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether whom the broker does not know now is gone: all others had the time to connect again, too. A process that has
    /// only just come need not wait for them.
    pub(crate) fn settled(&self, now: Instant) -> bool {
        let (generation, since) = self.era(now);
        generation <= 1 || now.saturating_duration_since(since) >= SETTLED
    }

    fn era(&self, now: Instant) -> (u64, Instant) {
        let mut era = self.era.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.generation();
        if era.0 != generation {
            *era = (generation, now);
        }
        *era
    }

    pub(crate) fn publish_state(&self, connected: bool) {
        let (generation, _) = self.era(Instant::now());
        let now = match connected {
            true => ConnectionState::Connected { generation },
            false => ConnectionState::Disconnected { generation },
        };
        self.state.send_if_modified(|state| {
            let changed = *state != now;
            *state = now;
            changed
        });
    }

    pub(crate) fn state(&self) -> watch::Receiver<ConnectionState> {
        self.state.subscribe()
    }

    pub(crate) fn violations(&self) -> broadcast::Receiver<Violation> {
        self.violations.subscribe()
    }

    pub(crate) fn report_violation(&self, violation: Violation) {
        // No receiver only means that nobody waits for this subject now.
        let _ = self.violations.send(violation);
    }

    pub(crate) fn count_slow_consumer(&self) {
        self.slow_consumer_events.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn slow_consumer_events(&self) -> u64 {
        self.slow_consumer_events.load(Ordering::Relaxed)
    }

    pub(crate) fn register_marker(&self) -> (u64, oneshot::Receiver<()>) {
        let id = self.next_marker.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        self.markers.lock().unwrap_or_else(PoisonError::into_inner).insert(id, tx);
        (id, rx)
    }

    /// Ends the wait for a marker, whether it came (`seen`) or its deadline did.
    pub(crate) fn resolve_marker(&self, id: u64, seen: bool) {
        let waiting = self.markers.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let (Some(waiting), true) = (waiting, seen) {
            let _ = waiting.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_of_a_permission_error_is_read_from_the_brokers_text() {
        for (text, refused) in [
            (r#"Permissions Violation for Publish to "some.subject""#, Refused::Publish),
            (
                r#"Permissions Violation for Subscription to "some.subject" using queue "q""#,
                Refused::Subscribe,
            ),
        ] {
            let violation = Violation::parse(text).unwrap();
            assert_eq!((violation.refused, violation.subject.as_str()), (refused, "some.subject"));
        }
        assert!(Violation::parse("Stale Connection").is_none());
    }

    #[test]
    fn nobody_is_missed_until_all_had_the_time_to_connect_again() {
        let (link, statistics) = (Link::new(), Arc::new(Statistics::default()));
        link.attach(Arc::clone(&statistics));
        let now = Instant::now();
        statistics.connects.store(1, Ordering::Release);
        assert!(link.settled(now), "it has only just come");
        statistics.connects.store(2, Ordering::Release);
        assert!(!link.settled(now));
        assert!(!link.settled(now + SETTLED / 2));
        assert!(link.settled(now + SETTLED));
        link.begin_discarding();
        link.end_discarding();
        assert!(!link.settled(now + SETTLED), "nor after a stall");
    }

    #[test]
    fn what_was_stamped_before_a_stall_is_stale_after_it() {
        let link = Link::new();
        link.tick();
        let before = link.generation();
        assert!(link.fresh(before));
        link.begin_discarding();
        assert!(!link.fresh(before), "while discarding nothing is fresh");
        link.end_discarding();
        assert!(!link.fresh(before));
        assert!(link.fresh(link.generation()));
    }
}
