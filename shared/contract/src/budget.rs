//! Time a request has left. On the wire it is relative ([`Budget`]), so clocks need no synchronisation; each hop turns
//! it into a monotonic instant on receipt ([`Deadline`]) and passes on what is left.

use std::time::{Duration, Instant};

/// Relative time left, as carried in the `Km-Budget-Ms` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Budget(Duration);

impl Budget {
    #[must_use]
    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    #[must_use]
    pub const fn from_secs(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }

    #[must_use]
    pub fn duration(self) -> Duration {
        self.0
    }

    #[must_use]
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl From<Duration> for Budget {
    fn from(left: Duration) -> Self {
        Self(left)
    }
}

/// A monotonic instant after which work must have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline of a request that arrived at `now` with `budget` left.
    #[must_use]
    pub fn after(now: Instant, budget: Budget) -> Self {
        Self(now + budget.0)
    }

    #[must_use]
    pub fn at(self) -> Instant {
        self.0
    }

    #[must_use]
    pub fn expired(self, now: Instant) -> bool {
        now >= self.0
    }

    /// What is left at `now`; zero once expired.
    #[must_use]
    pub fn left(self, now: Instant) -> Budget {
        Budget(self.0.saturating_duration_since(now))
    }

    /// The earlier of the two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        if self.0 <= other.0 { self } else { other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_shrinks_on_its_way_and_never_goes_below_zero() {
        let now = Instant::now();
        let deadline = Deadline::after(now, Budget::from_millis(100));
        assert_eq!(deadline.left(now + Duration::from_millis(30)), Budget::from_millis(70));
        assert!(!deadline.expired(now + Duration::from_millis(99)));
        assert!(deadline.expired(now + Duration::from_millis(100)));
        assert_eq!(deadline.left(now + Duration::from_secs(9)), Budget::from_millis(0));
    }
}
