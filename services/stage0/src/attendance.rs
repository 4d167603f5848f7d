//! Whether anyone watches. A session without a viewer pauses after a while, and ends after a longer one. Pure.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    pub pause_after: Duration,
    pub end_after: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attendance {
    Watched,
    /// Nobody watches, for less than the time to pause.
    Waiting,
    Paused,
    Over,
}

#[derive(Debug)]
pub(crate) struct Viewers {
    patience: Patience,
    /// Since when nobody watches.
    absent: Option<Instant>,
}

impl Viewers {
    /// A new session has no viewer yet.
    pub(crate) fn new(patience: Patience, now: Instant) -> Self {
        Self { patience, absent: Some(now) }
    }

    pub(crate) fn set(&mut self, watching: bool, now: Instant) {
        if watching {
            self.absent = None;
        } else if self.absent.is_none() {
            self.absent = Some(now);
        }
    }

    pub(crate) fn attendance(&self, now: Instant) -> Attendance {
        let Some(since) = self.absent else { return Attendance::Watched };
        let absent = now.saturating_duration_since(since);
        if absent >= self.patience.end_after {
            Attendance::Over
        } else if absent >= self.patience.pause_after {
            Attendance::Paused
        } else {
            Attendance::Waiting
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
            [Attendance::Waiting, Attendance::Paused, Attendance::Paused, Attendance::Over]
        );
    }

    #[test]
    fn a_viewer_stops_the_clock_and_only_the_last_to_leave_starts_it() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut viewers = Viewers::new(PATIENCE, start);
        viewers.set(true, later(50));
        assert_eq!(viewers.attendance(later(5000)), Attendance::Watched);
        viewers.set(false, later(100));
        viewers.set(false, later(109));
        assert_eq!(viewers.attendance(later(110)), Attendance::Paused);
    }
}
