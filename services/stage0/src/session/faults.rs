//! When failed calls end a session. Pure.

use contract::error::{Error, Reason};

/// Failed calls in a row that end a session.
const LIMIT: u32 = 3;

#[derive(Debug, Default)]
pub(super) struct Faults(u32);

impl Faults {
    /// A call failed; the chunk will be asked for again.
    ///
    /// # Errors
    /// It was one too many: the session ends with this error.
    pub(super) fn failed(&mut self, error: &Error) -> Result<(), Error> {
        // Nothing is faulted by a broker that is away: no call is made until it is back.
        self.0 += u32::from(error.reason != Reason::BrokerUnavailable);
        if self.0 < LIMIT { Ok(()) } else { Err(error.clone()) }
    }

    pub(super) fn succeeded(&mut self) {
        self.0 = 0;
    }

    pub(super) fn in_a_row(&self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(reason: Reason) -> Error {
        Error::new(reason, "why")
    }

    #[test]
    fn the_third_fault_in_a_row_ends_the_session_with_its_error() {
        let mut faults = Faults::default();
        assert_eq!(faults.failed(&error(Reason::BudgetSpent)), Ok(()));
        assert_eq!(faults.failed(&error(Reason::RankLost)), Ok(()));
        assert_eq!(faults.failed(&error(Reason::CountMismatch)), Err(error(Reason::CountMismatch)));
    }

    #[test]
    fn a_chunk_in_between_forgives() {
        let mut faults = Faults::default();
        for _ in 0..9 {
            faults.failed(&error(Reason::RankLost)).unwrap();
            faults.failed(&error(Reason::RankLost)).unwrap();
            faults.succeeded();
        }
        assert_eq!(faults.in_a_row(), 0);
    }

    #[test]
    fn a_broker_that_is_away_is_nobodys_fault() {
        let mut faults = Faults::default();
        for _ in 0..9 {
            faults.failed(&error(Reason::BrokerUnavailable)).unwrap();
        }
        assert_eq!(faults.in_a_row(), 0);
    }
}
