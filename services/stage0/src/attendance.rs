//! Whether anyone watches. A session without a viewer pauses after a while, and ends after a longer one. Pure.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    pub pause_after: Duration,
    pub end_after: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attendance {
    /// Somebody watches, or did a moment ago.
    Watched,
    Paused,
    Over,
}

#[derive(Debug)]
pub(crate) struct Viewers {
    patience: Patience,
    /// When somebody was last known to watch.
    seen: Instant,
    /// Since then nobody can be heard, so nobody is missed.
    deaf_since: Option<Instant>,
}

impl Viewers {
    /// A new session has no viewer yet.
    pub(crate) fn new(patience: Patience, now: Instant) -> Self {
        Self { patience, seen: now, deaf_since: None }
    }

    /// Somebody watches now. Whoever said so may die without a word, so only saying it again keeps it true.
    pub(crate) fn seen(&mut self, now: Instant) {
        self.seen = self.seen.max(now);
    }

    /// Without the broker nobody can say that they watch. That time does not count.
    pub(crate) fn can_hear(&mut self, hears: bool, now: Instant) {
        match (hears, self.deaf_since) {
            (false, None) => self.deaf_since = Some(now),
            (true, Some(since)) => {
                self.seen += now.saturating_duration_since(since);
                self.deaf_since = None;
            }
            _ => {}
        }
    }

    pub(crate) fn attendance(&self, now: Instant) -> Attendance {
        let absent = self.deaf_since.unwrap_or(now).saturating_duration_since(self.seen);
        if absent >= self.patience.end_after {
            Attendance::Over
        } else if absent >= self.patience.pause_after {
            Attendance::Paused
        } else {
            Attendance::Watched
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience =
        Patience { pause_after: Duration::from_secs(10), end_after: Duration::from_secs(60) };

    #[test]
    fn a_session_that_nobody_watches_pauses_then_ends() {
        let start = Instant::now();
        let viewers = Viewers::new(PATIENCE, start);
        let at = |seconds| viewers.attendance(start + Duration::from_secs(seconds));
        assert_eq!(
            [at(9), at(10), at(59), at(60)],
            [Attendance::Watched, Attendance::Paused, Attendance::Paused, Attendance::Over]
        );
    }

    #[test]
    fn time_in_which_nobody_can_be_heard_does_not_count() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut viewers = Viewers::new(PATIENCE, start);
        viewers.can_hear(false, later(5));
        viewers.can_hear(false, later(50));
        assert_eq!(viewers.attendance(later(500)), Attendance::Watched);
        viewers.can_hear(true, later(500));
        assert_eq!(viewers.attendance(later(504)), Attendance::Watched);
        assert_eq!(viewers.attendance(later(505)), Attendance::Paused);
    }

    #[test]
    fn a_viewer_counts_for_as_long_as_somebody_says_so() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut viewers = Viewers::new(PATIENCE, start);
        viewers.seen(later(50));
        viewers.seen(later(47));
        assert_eq!(viewers.attendance(later(59)), Attendance::Watched);
        assert_eq!(viewers.attendance(later(60)), Attendance::Paused);
        viewers.seen(later(61));
        assert_eq!(viewers.attendance(later(62)), Attendance::Watched);
    }
}
