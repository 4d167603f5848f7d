//! Two ranks that send one another bytes.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

use super::Rendezvous;
use super::gpu::Stream;
use super::group::Group;
use crate::CollectiveError;

/// One end of a group of two, for bytes that go from memory of one GPU to memory of the other. Its work has a stream of its
/// own: it waits for nothing that torch computes, and nothing of torch waits for it.
///
/// Every [`Pair::send`] of one end meets the [`Pair::receive`] of the other that has the same place in the order, with the same
/// length: NCCL compares neither. At one time at most one transfer may be under way, in either direction: NCCL puts the work
/// of a communicator in order, so that two ends which begin different transfers wait for one another.
///
/// After any error the pair is of no further use. Dropped, it ends the group.
#[derive(Debug)]
pub struct Pair {
    group: Group,
    calling: Mutex<()>,
}

impl Pair {
    /// Joins as `rank` 0 or 1 with the GPU `cuda:index` and waits until the other end has. A connection for bytes is made by
    /// NCCL with the first transfer in its direction, which takes accordingly longer.
    ///
    /// # Errors
    /// `Io` when the arguments do not fit or NCCL fails; `Timeout` when the other end is missing at the deadline; `Aborted`
    /// when it gave up.
    pub fn connect(
        rendezvous: &Rendezvous,
        index: usize,
        rank: u32,
        deadline: Instant,
    ) -> Result<Self, CollectiveError> {
        super::available()?;
        let group = Group::join(rendezvous, index, Stream::new(index)?, rank, 2, deadline)?;
        Ok(Self { group, calling: Mutex::new(()) })
    }

    /// Sends `len` bytes, at least 1, of this end's GPU at `from`. On return they are on their way and may be overwritten.
    ///
    /// # Errors
    /// `Timeout`, `Aborted`, `Mismatch` for a call that overlaps another, `Io`.
    ///
    /// # Safety
    /// `from` is the address of `len` bytes of device memory that nothing writes until this has returned. After an error they
    /// stay allocated until [`Pair::freed`] says that the group is.
    pub unsafe fn send(&self, from: u64, len: usize, deadline: Instant) -> Result<(), CollectiveError> {
        let _calling = self.calling("send")?;
        // SAFETY: the caller's promise.
        self.group.call("send", deadline, |communicator| unsafe { communicator.send(from, len, self.peer()) })
    }

    /// Receives `len` bytes, at least 1, into memory of this end's GPU at `to`. On return they are there.
    ///
    /// # Errors
    /// As [`Pair::send`].
    ///
    /// # Safety
    /// As for [`Pair::send`], of memory that nothing reads or writes meanwhile.
    pub unsafe fn receive(&self, to: u64, len: usize, deadline: Instant) -> Result<(), CollectiveError> {
        let _calling = self.calling("receive")?;
        // SAFETY: the caller's promise.
        self.group
            .call("receive", deadline, |communicator| unsafe { communicator.receive(to, len, self.peer()) })
    }

    /// From any thread: a blocked call and every later one returns `Aborted`. Never blocks; the first reason stands.
    pub fn abort(&self, reason: &str) {
        self.group.abort(reason);
    }

    /// Waits until an aborted or failed pair has given back what it holds of the device; whether it has by then.
    pub fn freed(&self, by: Instant) -> bool {
        self.group.freed(by)
    }

    fn peer(&self) -> i32 {
        if self.group.rank == 0 { 1 } else { 0 }
    }

    fn calling(&self, op: &'static str) -> Result<MutexGuard<'_, ()>, CollectiveError> {
        match self.calling.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Ok(PoisonError::into_inner(poisoned)),
            Err(TryLockError::WouldBlock) => Err(self.group.overlap(op)),
        }
    }
}
