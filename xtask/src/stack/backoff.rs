//! How long to wait before a process that ended is started again. Time is passed in.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(8);
/// A process that lived this long is healthy again: its next end is treated as its first.
const HEALTHY: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub struct Backoff {
    ends: u32,
}

impl Backoff {
    /// The wait after a life of `lived`: it doubles from 250 ms and never passes 8 s.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= HEALTHY {
            self.ends = 0;
        }
        let wait = FIRST.saturating_mul(2_u32.saturating_pow(self.ends)).min(LONGEST);
        self.ends = self.ends.saturating_add(1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Backoff, FIRST, HEALTHY, LONGEST};

    #[test]
    fn waits_double_up_to_a_bound() {
        let mut backoff = Backoff::default();

        let waits: Vec<_> = (0..100).map(|_| backoff.after(Duration::ZERO)).collect();

        assert_eq!(waits[..3], [FIRST, FIRST * 2, FIRST * 4]);
        assert_eq!(waits[99], LONGEST);
    }

    #[test]
    fn a_long_life_forgives_the_ends_before_it() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            backoff.after(Duration::ZERO);
        }

        assert_eq!(backoff.after(HEALTHY), FIRST);
    }
}
