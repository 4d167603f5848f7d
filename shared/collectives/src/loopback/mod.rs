//! Ranks of one host (processes, or threads of one process) over a shared memory segment.
//!
//! Every call is an exchange of pieces. For each piece a rank writes its contribution into its own buffer, posts the
//! piece's number, waits until all have posted it, and reads all buffers in rank order. So the result depends on
//! neither arrival order nor scheduling, and no rank ever writes where another one does.

mod layout;
mod poison;
mod reduce;
mod rendezvous;
mod stamp;
mod wait;

use std::sync::atomic::Ordering;
use std::sync::{Mutex, TryLockError};
use std::time::Instant;

use segment::Segment;
use tch::{Device, Tensor};

use self::layout::{Layout, PIECE_BYTES};
pub use self::rendezvous::Rendezvous;
use self::stamp::{Call, What};
use self::wait::Stop;
use crate::rendezvous::check_place;
use crate::tensor::Elements;
use crate::{Collective, CollectiveError, ReduceOp};

/// One rank's end of the group.
#[derive(Debug)]
pub struct Loopback {
    layout: Layout,
    rank: u32,
    done: Mutex<Done>,
}

/// How far this rank is.
#[derive(Debug, Default)]
struct Done {
    calls: u64,
    /// Wraps.
    pieces: u32,
}

impl Loopback {
    /// Joins as `rank` and waits until all ranks have. The segment's name is gone when this returns.
    ///
    /// # Errors
    /// `Io` when the segment or the arguments do not fit or the rank is taken; `Timeout` when a rank is missing at the
    /// deadline (the group is then poisoned), `Aborted` when another rank gave up.
    pub fn connect(
        rendezvous: &Rendezvous,
        rank: u32,
        world_size: u32,
        deadline: Instant,
    ) -> Result<Self, CollectiveError> {
        let io = |text: String| Err(CollectiveError::Io(text));
        check_place(rank, world_size, rendezvous.world_size())?;
        let segment = Segment::open(rendezvous.name(), Layout::bytes(world_size))
            .map_err(|error| CollectiveError::Io(format!("loopback segment: {error}")))?;
        let layout = Layout::new(segment, world_size);
        if !layout.is_formatted() {
            return io(format!("{} is not a loopback segment for {world_size} ranks", rendezvous.name()));
        }
        let free = layout.attached(rank).compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst);
        if free.is_err() {
            return io(format!("rank {rank} of {} is taken", rendezvous.name()));
        }
        // From here on a failure is the group's: dropping `joined` poisons it.
        let joined = Self { layout, rank, done: Mutex::default() };
        wait::ring_all(&joined.layout);
        let attached = |peer| joined.layout.attached(peer).load(Ordering::SeqCst) != 0;
        let met = joined.wait_for_all("connect", deadline, attached, |_| Ok(()));
        joined.layout.segment().unlink();
        met.map(|()| joined)
    }

    /// One call: `exchange` moves the pieces. Its failure is the group's.
    fn call(
        &self,
        what: What,
        elements: Option<&Elements>,
        exchange: impl FnOnce(&mut Done, &Call) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let mut done = match self.done.try_lock() {
            Ok(done) => done,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(self.overlap(what)),
        };
        if poison::is_set(&self.layout) {
            return Err(CollectiveError::Aborted { reason: poison::reason(&self.layout) });
        }
        done.calls += 1;
        let (dtype, numel) = elements.map_or((None, 0), |e| (Some(e.dtype), e.numel));
        let call = Call::new(done.calls, what, dtype, numel);
        let result = exchange(&mut done, &call);
        if let Err(error) = &result {
            poison::set(&self.layout, &format!("rank {}: {error}", self.rank));
        }
        result
    }

    /// The element count of each piece and where it starts; one empty piece for an empty tensor.
    fn pieces(elements: &Elements) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (numel, step) = (elements.numel, PIECE_BYTES / elements.dtype.bytes());
        (0..numel.max(1)).step_by(step).map(move |start| (start, step.min(numel - start)))
    }

    /// Posts the next piece, whose bytes `fill` writes at the given place, and returns its number once all ranks have
    /// posted theirs and agree on the call.
    fn exchange(
        &self,
        done: &mut Done,
        (what, call): (What, &Call),
        deadline: Instant,
        fill: impl FnOnce(*mut u8),
    ) -> Result<u32, CollectiveError> {
        let piece = done.pieces.wrapping_add(1);
        let layout = &self.layout;
        fill(layout.data(self.rank, piece));
        layout.stamp(self.rank, piece).set(call);
        layout.posted(self.rank).store(piece, Ordering::Release);
        wait::ring_all(layout);
        done.pieces = piece;
        // A peer is at most one piece ahead of us, so a number at or past ours is ours or the next one.
        let posted = |peer| layout.posted(peer).load(Ordering::Acquire).wrapping_sub(piece) <= 1;
        self.wait_for_all(what.name(), deadline, posted, |peer| {
            let theirs = layout.stamp(peer, piece).get();
            if theirs == *call {
                return Ok(());
            }
            let (ours, theirs) = (call.to_string(), theirs.to_string());
            Err(CollectiveError::Mismatch { op: what.name(), rank: self.rank, peer, ours, theirs })
        })?;
        Ok(piece)
    }

    fn wait_for_all(
        &self,
        op: &'static str,
        deadline: Instant,
        here: impl Fn(u32) -> bool,
        check: impl Fn(u32) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        for peer in self.layout.ranks() {
            match wait::until(&self.layout, self.rank, deadline, || here(peer)) {
                Ok(()) => check(peer)?,
                Err(Stop::Poisoned) => {
                    return Err(CollectiveError::Aborted { reason: poison::reason(&self.layout) });
                }
                Err(Stop::Late) => {
                    let missing = self.layout.ranks().filter(|peer| !here(*peer)).collect();
                    let error = CollectiveError::Timeout { op, rank: self.rank, missing };
                    poison::set(&self.layout, &format!("rank {}: {error}", self.rank));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn overlap(&self, what: What) -> CollectiveError {
        let error = CollectiveError::Mismatch {
            op: what.name(),
            rank: self.rank,
            peer: self.rank,
            ours: what.name().to_owned(),
            theirs: "another call of this rank that still runs".to_owned(),
        };
        poison::set(&self.layout, &format!("rank {}: {error}", self.rank));
        error
    }
}

impl Collective for Loopback {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn world_size(&self) -> u32 {
        self.layout.world()
    }

    fn all_reduce(
        &self,
        tensor: &mut Tensor,
        op: ReduceOp,
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        let elements = Elements::of(tensor, Device::Cpu)?;
        let what = What::AllReduce(op);
        self.call(what, Some(&elements), |done, call| {
            for (start, len) in Self::pieces(&elements) {
                let own = elements.at(start);
                let size = len * elements.dtype.bytes();
                let piece = self.exchange(done, (what, call), deadline, |to| {
                    // SAFETY: `size` bytes of the tensor from `own`, and a buffer of PIECE_BYTES that no peer reads.
                    unsafe { own.copy_to_nonoverlapping(to, size) };
                })?;
                let sources: Vec<*const u8> =
                    self.layout.ranks().map(|rank| self.layout.data(rank, piece).cast_const()).collect();
                // SAFETY: as above; every rank has posted the piece and leaves its buffer alone until we post the next.
                unsafe { reduce::reduce(own, &sources, len, elements.dtype, op) };
            }
            Ok(())
        })
    }

    fn broadcast(&self, tensor: &mut Tensor, root: u32, deadline: Instant) -> Result<(), CollectiveError> {
        let elements = Elements::of(tensor, Device::Cpu)?;
        if root >= self.world_size() {
            let world = self.world_size();
            return Err(CollectiveError::BadTensor(format!("root is {root}: below {world} is allowed")));
        }
        let what = What::Broadcast { root };
        self.call(what, Some(&elements), |done, call| {
            for (start, len) in Self::pieces(&elements) {
                let own = elements.at(start);
                let size = len * elements.dtype.bytes();
                let piece = self.exchange(done, (what, call), deadline, |to| {
                    if self.rank == root {
                        // SAFETY: as in `all_reduce`.
                        unsafe { own.copy_to_nonoverlapping(to, size) };
                    }
                })?;
                if self.rank != root {
                    // SAFETY: as in `all_reduce`.
                    unsafe { own.copy_from_nonoverlapping(self.layout.data(root, piece), size) };
                }
            }
            Ok(())
        })
    }

    fn barrier(&self, deadline: Instant) -> Result<(), CollectiveError> {
        let what = What::Barrier;
        self.call(what, None, |done, call| self.exchange(done, (what, call), deadline, |_| ()).map(|_| ()))
    }

    fn abort(&self, reason: &str) {
        poison::set(&self.layout, &format!("rank {}: {reason}", self.rank));
    }
}

impl Drop for Loopback {
    /// A peer that still waits for this rank need not wait for its deadline.
    fn drop(&mut self) {
        poison::set(&self.layout, &format!("rank {} left the group", self.rank));
    }
}
