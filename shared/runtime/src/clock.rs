//! Wall-clock time, for people to read, and the detection of one's own stalls.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970. Deadlines and protocols never use it: it may jump.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Tells from the lateness of one's own tick that the process did not run for a while.
#[derive(Clone, Copy, Debug)]
pub struct StallDetector {
    period: Duration,
    limit: Duration,
    last: Option<Instant>,
}

impl StallDetector {
    /// For a tick every `period`; later than `limit` beyond it is a stall.
    #[must_use]
    pub fn new(period: Duration, limit: Duration) -> Self {
        Self { period, limit, last: None }
    }

    /// Call at each tick; returns how late it was if that is a stall.
    pub fn tick(&mut self, now: Instant) -> Option<Duration> {
        let last = self.last.replace(now)?;
        let late = now.saturating_duration_since(last).saturating_sub(self.period);
        (late > self.limit).then_some(late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_tick_later_than_the_limit_is_a_stall() {
        let ms = Duration::from_millis;
        let mut detector = StallDetector::new(ms(100), ms(500));
        let start = Instant::now();
        assert_eq!(detector.tick(start), None);
        assert_eq!(detector.tick(start + ms(600)), None);
        assert_eq!(detector.tick(start + ms(1300)), Some(ms(600)));
        assert_eq!(detector.tick(start + ms(1400)), None);
    }
}
