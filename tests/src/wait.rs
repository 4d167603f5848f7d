//! Waiting for conditions, with deadlines.

use std::future::Future;
use std::time::{Duration, Instant};

/// Contract deadlines are multiplied by this on slow or shared machines; `KINEMESH_TEST_SLACK` overrides it.
#[must_use]
pub fn slack() -> f64 {
    std::env::var("KINEMESH_TEST_SLACK").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0)
}

/// A contract deadline, with slack.
#[must_use]
pub fn contract(deadline: Duration) -> Duration {
    deadline.mul_f64(slack())
}

/// Asserts that something took no longer than the contract allows.
///
/// # Panics
/// If it did; the message names the slack.
pub fn assert_within(what: &str, took: Duration, allowed: Duration) {
    assert!(
        took <= contract(allowed),
        "{what} took {took:?}: {allowed:?} is allowed (slack factor {} already applied)",
        slack()
    );
}

const POLL: Duration = Duration::from_millis(20);

/// Asks again and again until `condition` gives a value.
///
/// # Panics
/// If `within` passes first.
pub async fn until<T, F, Fut>(what: &str, within: Duration, mut condition: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let end = Instant::now() + within;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < end, "waited {within:?} in vain for {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Bounds any future.
///
/// # Panics
/// If `within` passes first.
pub async fn bounded<T>(what: &str, within: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(within, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {within:?} in vain for {what}"),
    }
}
