//! The right of one controller to command the mesh.

use std::time::{Duration, Instant};

use contract::envelope::{EnvelopeV1, Lease};
use contract::{CallId, Error, InstanceId, LeaseEpoch, Reason};

use crate::invariants::{self, Violation};

/// At most one lease is in force. It is renewed by every action; after its TTL another controller may take it, and
/// until one does its holder may go on. Of a holder that is gone the lease ends before: who wants it makes the leader
/// look for the holder.
#[derive(Clone, Debug)]
pub struct LeaseBook {
    ttl: Duration,
    absence: Duration,
    granted: LeaseEpoch,
    held: Option<Held>,
    /// The newest call of whoever held a lease last. It outlives the lease, so that a HELLO heard again takes nothing.
    newest: Option<(InstanceId, CallId)>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    lease: Lease,
    expires: Instant,
    last_call: CallId,
    look: Look,
    /// The first time that it was not found, since it spoke last.
    missing: Option<Instant>,
}

/// Whether the shell looks for the holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    None,
    UnderWay,
    /// The holder spoke meanwhile: what comes of it says nothing.
    Void,
}

impl LeaseBook {
    #[must_use]
    pub fn new(ttl: Duration, absence: Duration) -> Self {
        Self { ttl, absence, granted: LeaseEpoch(0), held: None, newest: None }
    }

    /// Grants the next lease epoch.
    ///
    /// # Errors
    /// `lease_held` at once while another controller's lease has not expired; `stale_call` for a HELLO that is older than
    /// what this controller asked last.
    pub fn grant(&mut self, now: Instant, controller: InstanceId, call: CallId) -> Result<Lease, Error> {
        if let Some(held) = self.held
            && held.lease.controller != controller
            && now < held.expires
        {
            let holder = held.lease.controller;
            return Err(Error::new(Reason::LeaseHeld, format!("controller {holder} holds the lease")));
        }
        if let Some((who, seen)) = self.newest
            && who == controller
            && call <= seen
        {
            return Err(stale(call, seen));
        }
        self.newest = Some((controller, call));
        self.granted = self.granted.next();
        let lease = Lease { controller, epoch: self.granted };
        let expires = now + self.ttl;
        self.held = Some(Held { lease, expires, last_call: call, look: Look::None, missing: None });
        Ok(lease)
    }

    /// The lease whose holder is to be looked for, because another asked for it; none while that is being done.
    pub fn seek(&mut self, now: Instant) -> Option<Lease> {
        let held = self.held.as_mut().filter(|held| now < held.expires && held.look == Look::None)?;
        held.look = Look::UnderWay;
        Some(held.lease)
    }

    /// What came of looking. A holder that stays away has lost its lease.
    pub fn sought(&mut self, now: Instant, lease: Lease, gone: bool) {
        let Some(held) = self.held.as_mut().filter(|held| held.lease == lease) else { return };
        if std::mem::replace(&mut held.look, Look::None) != Look::UnderWay {
            return;
        }
        held.missing = gone.then(|| held.missing.unwrap_or(now));
        if held.missing.is_some_and(|since| now.saturating_duration_since(since) >= self.absence) {
            held.expires = now;
        }
    }

    /// Whether `envelope` comes from the holder; renews the lease if so.
    ///
    /// # Errors
    /// `fenced` if a newer lease exists, `no_lease` if there is none to speak for.
    pub fn authorise(&mut self, now: Instant, envelope: &EnvelopeV1) -> Result<Lease, Error> {
        let Some(claimed) = envelope.lease else {
            return Err(Error::new(
                Reason::NoLease,
                format!("{} without a lease: HELLO comes first", envelope.action.as_str()),
            ));
        };
        match &mut self.held {
            Some(held) if held.lease == (Lease { controller: envelope.controller, epoch: claimed }) => {
                (held.expires, held.missing) = (now + self.ttl, None);
                if held.look == Look::UnderWay {
                    held.look = Look::Void;
                }
                Ok(held.lease)
            }
            Some(held) => Err(Error::new(
                Reason::Fenced,
                format!("lease {claimed} of {}: lease {} is in force", envelope.controller, held.lease.epoch),
            )),
            None => Err(Error::new(
                Reason::NoLease,
                format!("lease {claimed} is no longer held: HELLO comes first"),
            )),
        }
    }

    /// Notes a call id that is new under the lease.
    ///
    /// # Errors
    /// `stale_call` if it is not above the highest one seen.
    pub fn advance(&mut self, call: CallId) -> Result<Result<(), Error>, Violation> {
        let Some(held) = &mut self.held else {
            return Ok(Err(Error::new(Reason::NoLease, "no lease is held: HELLO comes first")));
        };
        if call <= held.last_call {
            return Ok(Err(stale(call, held.last_call)));
        }
        invariants::calls_only_grow(held.last_call, call)?;
        held.last_call = call;
        self.newest = Some((held.lease.controller, call));
        Ok(Ok(()))
    }

    pub fn release(&mut self) {
        self.held = None;
    }

    /// The lease in force, expired or not.
    #[must_use]
    pub fn current(&self) -> Option<Lease> {
        self.held.map(|held| held.lease)
    }

    /// The lease, unless another controller could take it now.
    #[must_use]
    pub fn in_force(&self, now: Instant) -> Option<Lease> {
        self.held.filter(|held| now < held.expires).map(|held| held.lease)
    }

    #[must_use]
    pub fn last_call(&self) -> Option<CallId> {
        self.held.map(|held| held.last_call)
    }
}

fn stale(call: CallId, seen: CallId) -> Error {
    Error::new(Reason::StaleCall, format!("call {call}: call {seen} was seen, a higher id is expected"))
}
