//! What every call on a group has in common: it is launched, followed to its end, and its failure is the group's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{hint, thread};

use super::communicator::{Communicator, Progress};
use super::gpu::{Gpu, Stream};
use super::life::Life;
use super::{ABORT, Rendezvous};
use crate::CollectiveError;
use crate::rendezvous::check_place;

/// A collective between two GPUs takes tens of microseconds: so long a waiting rank does not give its core away.
const SPIN: Duration = Duration::from_millis(1);
const PAUSE: Duration = Duration::from_micros(50);
/// How often a waiting rank asks NCCL whether something went wrong.
const LOOK: Duration = Duration::from_millis(1);

/// One rank's place in a group. Dropped, it ends the group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) rank: u32,
    pub(super) world_size: u32,
    gpu: Gpu,
    life: Arc<Life>,
    /// Whether graphs have its work in them, which NCCL waits for before it frees the group.
    recorded: AtomicBool,
}

impl Group {
    /// Joins as `rank` with the GPU `cuda:index`, whose `stream` gets all work, and waits until all ranks have.
    ///
    /// # Errors
    /// `Io` when the arguments do not fit or NCCL fails; `Timeout` when a rank is missing at the deadline; `Aborted` when
    /// another rank gave up.
    pub(super) fn join(
        rendezvous: &Rendezvous,
        index: usize,
        stream: Stream,
        rank: u32,
        world_size: u32,
        deadline: Instant,
    ) -> Result<Self, CollectiveError> {
        check_place(rank, world_size, rendezvous.world_size())?;
        let stream = Arc::new(stream);
        let gpu = Gpu::of(index, Arc::clone(&stream))?;
        let communicator = Communicator::begin(rendezvous.id(), int(rank), int(world_size), stream)?;
        let life = Life::new(communicator);
        let joined = Self { rank, world_size, gpu, life, recorded: AtomicBool::new(false) };
        let met = joined.follow("connect", deadline, || joined.launched());
        if let Err(error) = met {
            joined.end(&error);
            return Err(error);
        }
        Ok(joined)
    }

    /// One call: `launch` gives NCCL its work. Returns when the device has done it.
    pub(super) fn call(
        &self,
        op: &'static str,
        deadline: Instant,
        launch: impl FnOnce(&Communicator) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let run = || {
            self.life.check()?;
            self.gpu.enter()?;
            self.life.with(launch)?;
            self.follow(op, deadline, || self.launched())?;
            self.gpu.mark()?;
            self.follow(op, deadline, || self.gpu.passed())?;
            // A failed group lets the device go on: that it is done does not say that it did it.
            self.life.with(Communicator::progress).map(|_| ())
        };
        self.failing(run())
    }

    /// `launch` gives NCCL work for a stream that is being captured. Returns when NCCL has put it there; none of it runs.
    pub(super) fn record(
        &self,
        op: &'static str,
        deadline: Instant,
        launch: impl FnOnce(&Communicator) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        self.recorded.store(true, Ordering::Relaxed);
        let run = || {
            self.gpu.enter()?;
            self.life.with(launch)?;
            self.follow(op, deadline, || self.launched())
        };
        self.failing(run())
    }

    /// A failure is the group's end.
    fn failing(&self, result: Result<(), CollectiveError>) -> Result<(), CollectiveError> {
        result.inspect_err(|error| self.end(error))
    }

    /// A call that begins while another one runs has no place in the order: it is the end of the group.
    pub(super) fn overlap(&self, op: &'static str) -> CollectiveError {
        let error = CollectiveError::Mismatch {
            op,
            rank: self.rank,
            peer: self.rank,
            ours: op.to_owned(),
            theirs: "another call of this rank that still runs".to_owned(),
        };
        self.end(&error);
        error
    }

    fn launched(&self) -> Result<bool, CollectiveError> {
        Ok(self.life.with(Communicator::progress)? == Progress::Done)
    }

    /// Waits until `done`, the group has ended or failed, or the deadline has passed.
    fn follow(
        &self,
        op: &'static str,
        deadline: Instant,
        done: impl Fn() -> Result<bool, CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let started = Instant::now();
        let mut looked = started;
        while !done()? {
            self.life.check()?;
            let now = Instant::now();
            if now >= deadline {
                // NCCL does not say which of them it waits for.
                let missing = (0..self.world_size).filter(|rank| *rank != self.rank).collect();
                return Err(CollectiveError::Timeout { op, rank: self.rank, missing });
            }
            if now - looked >= LOOK {
                looked = now;
                self.life.with(Communicator::progress)?;
            }
            if now - started < SPIN {
                hint::spin_loop();
            } else {
                thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    /// Ends the group. Where its work is in torch's stream, what comes next there would wait behind it: then this waits, within
    /// bounds, until the device is free of it. Not so where there are graphs: whoever has them drops them first.
    fn end(&self, error: &CollectiveError) {
        self.abort(&error.to_string());
        if self.gpu.stream().is_torchs() && !self.recorded.load(Ordering::Relaxed) {
            self.freed(Instant::now() + ABORT);
        }
    }

    /// From any thread; never blocks.
    pub(super) fn abort(&self, reason: &str) {
        self.life.end(&format!("rank {}: {reason}", self.rank));
    }

    /// Waits until an ended group is freed; whether it is.
    pub(super) fn freed(&self, by: Instant) -> bool {
        self.life.freed(by)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.life.end(&format!("rank {} left the group", self.rank));
    }
}

fn int(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
