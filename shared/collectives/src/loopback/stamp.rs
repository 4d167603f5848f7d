use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::ReduceOp;
use crate::tensor::Dtype;

/// What a rank does in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    AllReduce(ReduceOp),
    Broadcast { root: u32 },
    Barrier,
}

impl What {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AllReduce(_) => "all_reduce",
            Self::Broadcast { .. } => "broadcast",
            Self::Barrier => "barrier",
        }
    }

    fn code(self) -> u32 {
        match self {
            Self::AllReduce(ReduceOp::Sum) => 1,
            Self::AllReduce(ReduceOp::Min) => 2,
            Self::AllReduce(ReduceOp::Max) => 3,
            Self::Barrier => 4,
            Self::Broadcast { root } => 5 | (root << 8),
        }
    }

    fn of(code: u32) -> Option<Self> {
        match (code & 0xff, code >> 8) {
            (1, 0) => Some(Self::AllReduce(ReduceOp::Sum)),
            (2, 0) => Some(Self::AllReduce(ReduceOp::Min)),
            (3, 0) => Some(Self::AllReduce(ReduceOp::Max)),
            (4, 0) => Some(Self::Barrier),
            (5, root) => Some(Self::Broadcast { root }),
            _ => None,
        }
    }
}

/// One call as its rank entered it: equal on all ranks, or the lock step is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// Count of this rank's calls, from 1.
    pub(super) number: u64,
    what: u32,
    /// 0 for none.
    dtype: u32,
    numel: u64,
}

impl Call {
    pub(super) fn new(number: u64, what: What, dtype: Option<Dtype>, numel: usize) -> Self {
        Self { number, what: what.code(), dtype: dtype.map_or(0, Dtype::code), numel: numel as u64 }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call {} ", self.number)?;
        match What::of(self.what) {
            Some(What::AllReduce(op)) => write!(f, "all_reduce({})", op.as_str())?,
            Some(What::Broadcast { root }) => write!(f, "broadcast(root {root})")?,
            Some(What::Barrier) => return f.write_str("barrier"),
            None => write!(f, "unknown operation {}", self.what)?,
        }
        match Dtype::of(self.dtype) {
            Some(dtype) => write!(f, " of {} x {}", self.numel, dtype.as_str()),
            None => write!(f, " of {} x unknown dtype {}", self.numel, self.dtype),
        }
    }
}

/// A [`Call`] in shared memory, beside the piece it belongs to. Ordered by the rank's `posted`.
pub(super) struct Stamp<'a> {
    pub(super) call: &'a AtomicU64,
    pub(super) numel: &'a AtomicU64,
    pub(super) what: &'a AtomicU32,
    pub(super) dtype: &'a AtomicU32,
}

impl Stamp<'_> {
    pub(super) fn set(&self, call: &Call) {
        self.call.store(call.number, Ordering::Relaxed);
        self.numel.store(call.numel, Ordering::Relaxed);
        self.what.store(call.what, Ordering::Relaxed);
        self.dtype.store(call.dtype, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Call {
        Call {
            number: self.call.load(Ordering::Relaxed),
            numel: self.numel.load(Ordering::Relaxed),
            what: self.what.load(Ordering::Relaxed),
            dtype: self.dtype.load(Ordering::Relaxed),
        }
    }
}
