//! What must hold whatever happens. Each is one function, used by production, property tests and the model check; a
//! broken one faults the mesh, in release builds as well.

use std::fmt;
use std::time::{Duration, Instant};

use contract::envelope::{Lease, ResultV1};
use contract::tp::PlanId;
use contract::{CacheEpoch, CallId, Digest, Error, InstanceId, LinkSlot, MeshEpoch, Rank, Reason};

/// A broken invariant: a defect of kinemesh or a peer that lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: Reason,
    pub text: String,
}

impl Violation {
    fn new(reason: Reason, text: String) -> Self {
        Self { reason, text }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        Error::new(violation.reason, violation.text)
    }
}

/// No rank enters a collective without `go` for exactly the plan it armed.
///
/// # Errors
/// Names both.
pub fn go_before_collective(armed: (PlanId, &Digest), go: (PlanId, &Digest)) -> Result<(), Violation> {
    if armed == go {
        return Ok(());
    }
    let text = format!("go for plan {} ({}) while plan {} ({}) is armed", go.0.0, go.1, armed.0.0, armed.1);
    Err(Violation::new(Reason::Internal, text))
}

/// Call ids of one lease only grow.
///
/// # Errors
/// Names both.
pub fn calls_only_grow(last: CallId, next: CallId) -> Result<(), Violation> {
    if next > last {
        return Ok(());
    }
    Err(Violation::new(Reason::Internal, format!("call id {next} after {last}")))
}

/// Mesh epochs only grow.
///
/// # Errors
/// Names both.
pub fn epochs_only_grow(last: Option<MeshEpoch>, next: MeshEpoch) -> Result<(), Violation> {
    match last {
        Some(last) if next <= last => {
            Err(Violation::new(Reason::Internal, format!("mesh epoch {next} after {last}")))
        }
        _ => Ok(()),
    }
}

/// The lease that a result is given to is the one that asked for it, and is in force.
///
/// # Errors
/// `fenced`, naming both.
pub fn one_lease_is_obeyed(asked: Lease, in_force: Option<Lease>) -> Result<(), Violation> {
    if in_force == Some(asked) {
        return Ok(());
    }
    let now = in_force.map_or_else(|| "none".to_owned(), |lease| lease.epoch.to_string());
    Err(Violation::new(Reason::Fenced, format!("lease {} asked, lease {now} is in force", asked.epoch)))
}

/// The mesh ran what the plan implies.
///
/// # Errors
/// `count_mismatch`, naming rank and both numbers.
pub fn observed_equals_expected(expected: u32, least: u32, most: u32) -> Result<(), Violation> {
    if (least, most) == (expected, expected) {
        return Ok(());
    }
    let observed =
        if least == most { format!("{least}") } else { format!("{least} to {most} over the ranks") };
    Err(Violation::new(
        Reason::CountMismatch,
        format!("observed generator calls {observed}: {expected} are expected"),
    ))
}

/// All formations of one model give the same canary.
///
/// # Errors
/// `digest_mismatch`, naming both.
pub fn canary_is_the_first(first: Option<&Digest>, now: &Digest) -> Result<(), Violation> {
    match first {
        Some(first) if first != now => Err(Violation::new(
            Reason::DigestMismatch,
            format!("canary digest {now}: the first forming gave {first}"),
        )),
        _ => Ok(()),
    }
}

/// A result is accepted only in the history that it continues.
///
/// # Errors
/// `stale_epoch` or `count_mismatch`, naming both values.
pub fn result_is_current(
    result: &ResultV1,
    mesh_epoch: MeshEpoch,
    cache_epoch: CacheEpoch,
    expected_calls: u32,
) -> Result<(), Violation> {
    if result.mesh_epoch != mesh_epoch {
        let text = format!("result of mesh epoch {}: {mesh_epoch} is current", result.mesh_epoch);
        return Err(Violation::new(Reason::StaleEpoch, text));
    }
    if result.cache_epoch != cache_epoch {
        let text = format!("result of cache epoch {}: {cache_epoch} is current", result.cache_epoch);
        return Err(Violation::new(Reason::StaleEpoch, text));
    }
    let observed = result.observed_generator_calls;
    observed_equals_expected(expected_calls, observed, observed)
}

/// Ranks are distinct, and none is the leader's.
///
/// # Errors
/// Names the rank.
pub fn ranks_are_distinct(ranks: &[Rank]) -> Result<(), Violation> {
    for (at, rank) in ranks.iter().enumerate() {
        if *rank == Rank::LEADER || ranks[..at].contains(rank) {
            return Err(Violation::new(Reason::Internal, format!("rank {rank} is assigned twice")));
        }
    }
    Ok(())
}

/// One mesh epoch has one leader.
///
/// # Errors
/// `fenced`, naming both.
pub fn one_leader_per_epoch(
    epoch: MeshEpoch,
    known: Option<InstanceId>,
    claims: InstanceId,
) -> Result<(), Violation> {
    match known {
        Some(known) if known != claims => {
            let text = format!("mesh epoch {epoch} is led by {known}: {claims} claims it as well");
            Err(Violation::new(Reason::Fenced, text))
        }
        _ => Ok(()),
    }
}

/// No link slot is written while its last content may still be read.
///
/// # Errors
/// `slot_busy`, naming the slot.
pub fn no_slot_is_read_and_written(reading: &[LinkSlot], writing: &[LinkSlot]) -> Result<(), Violation> {
    match writing.iter().find(|slot| reading.contains(slot)) {
        Some(slot) => Err(Violation::new(
            Reason::SlotBusy,
            format!("link slot {slot} may still be read: it is written"),
        )),
        None => Ok(()),
    }
}

/// Every call ends by its deadline and a slack for the way back.
///
/// # Errors
/// `budget_spent`, naming by how much it is late.
pub fn call_ends(now: Instant, call: CallId, deadline: Instant, slack: Duration) -> Result<(), Violation> {
    ends(now, deadline + slack).map_err(|late| {
        let ms = late.as_millis();
        Violation::new(Reason::BudgetSpent, format!("call {call}: its budget ran out, {ms} ms ago"))
    })
}

/// A process that was asked to stop ends within `bound`, whatever its peers do.
///
/// # Errors
/// `draining`, naming the bound.
pub fn drain_ends(now: Instant, asked: Instant, bound: Duration) -> Result<(), Violation> {
    ends(now, asked + bound).map_err(|_| {
        let ms = bound.as_millis();
        Violation::new(Reason::Draining, format!("asked to stop, and not done within {ms} ms"))
    })
}

/// By how much `now` is past `end`.
fn ends(now: Instant, end: Instant) -> Result<(), Duration> {
    match now.checked_duration_since(end) {
        Some(late) if !late.is_zero() => Err(late),
        _ => Ok(()),
    }
}
