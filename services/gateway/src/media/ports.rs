//! One UDP port of the configured range per session.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use contract::{Error, Reason};

#[derive(Clone, Debug)]
pub(crate) struct Ports {
    range: Option<RangeInclusive<u16>>,
    used: Arc<Mutex<BTreeSet<u16>>>,
}

/// A port that is given back when dropped; 0 lets the system choose.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    used: Arc<Mutex<BTreeSet<u16>>>,
}

impl Ports {
    pub(crate) fn new(range: Option<RangeInclusive<u16>>) -> Self {
        Self { range, used: Arc::default() }
    }

    /// # Errors
    /// `too_many_sessions` when every port is taken.
    pub(crate) fn take(&self) -> Result<Port, Error> {
        let used = Arc::clone(&self.used);
        let Some(range) = &self.range else { return Ok(Port { number: 0, used }) };
        let mut taken = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let free = range.clone().find(|port| !taken.contains(port)).ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            Error::new(Reason::TooManySessions, format!("all UDP ports from {low} to {high} are in use"))
        })?;
        taken.insert(free);
        Ok(Port { number: free, used })
    }
}

impl Port {
    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_session_has_its_own_port_and_gives_it_back() {
        let ports = Ports::new(Some(5000..=5001));
        let (a, b) = (ports.take().unwrap(), ports.take().unwrap());
        assert_eq!((a.number(), b.number()), (5000, 5001));
        assert_eq!(ports.take().unwrap_err().reason, Reason::TooManySessions);
        drop(a);
        assert_eq!(ports.take().unwrap().number(), 5000);
        assert_eq!(Ports::new(None).take().unwrap().number(), 0);
    }
}
