use std::sync::atomic::{AtomicU32, Ordering};

use contract::link::{LinkDescriptor, LinkKind};
use contract::tensor::{Dtype, TensorKey, TensorSpec};
use contract::{Error, LinkSlot, Reason};
use segment::Segment;

use super::slot::Slot;
use crate::tensor::MAX_DIMS;

const MAGIC: u64 = u64::from_le_bytes(*b"kmlink\0\x01");
const PAGE: usize = 4096;
const CACHE_LINE: usize = 64;
const SLOT_HEADER: usize = 2 * CACHE_LINE;
const MAX_SLOTS: u32 = 1024;
const MAX_SLOT_BYTES: u64 = 1 << 32;

/// The two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Stage0,
    Leader,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Stage0 => Self::Leader,
            Self::Leader => Self::Stage0,
        }
    }
}

/// The segment, by the names of what lies in it:
///
/// ```text
/// page 0     magic, link epoch | opened | closed by stage0 | closed by the leader
/// headers    two cache lines a slot: word, key, dtype, byte length, dimensions, shape
/// contents   slot_bytes a slot, each starting on a page
/// ```
#[derive(Debug)]
pub(super) struct Layout {
    segment: Segment,
    slots_in: u32,
    slots_out: u32,
    slot_bytes: u64,
    sizes: Sizes,
}

/// What the three numbers of a descriptor come to.
#[derive(Debug)]
struct Sizes {
    contents: usize,
    stride: usize,
    total: usize,
}

fn sizes(slots_in: u32, slots_out: u32, slot_bytes: u64) -> Result<Sizes, Error> {
    let bad = |text: String| Err(Error::new(Reason::BadField, text));
    for (name, slots) in [("slots_in", slots_in), ("slots_out", slots_out)] {
        if slots == 0 || slots > MAX_SLOTS {
            return bad(format!("{name} is {slots}: 1 to {MAX_SLOTS} are allowed"));
        }
    }
    if slot_bytes == 0 || slot_bytes > MAX_SLOT_BYTES {
        return bad(format!("slot_bytes is {slot_bytes}: 1 to {MAX_SLOT_BYTES} are allowed"));
    }
    let slots = (slots_in + slots_out) as usize;
    let stride = (slot_bytes as usize).next_multiple_of(PAGE);
    let contents = PAGE + (slots * SLOT_HEADER).next_multiple_of(PAGE);
    Ok(Sizes { contents, stride, total: contents + slots * stride })
}

impl Layout {
    pub(super) fn create(
        name: &str,
        slots: (u32, u32),
        slot_bytes: u64,
        link_epoch: u64,
    ) -> Result<Self, Error> {
        let sizes = sizes(slots.0, slots.1, slot_bytes)?;
        let total = sizes.total;
        let segment = Segment::create(name, total).map_err(|error| {
            Error::new(Reason::Internal, format!("no link of {total} bytes can be made"))
                .detail(error.to_string())
        })?;
        let layout = Self { segment, slots_in: slots.0, slots_out: slots.1, slot_bytes, sizes };
        for slot in 0..slots.0 + slots.1 {
            layout.slot(LinkSlot(slot)).format(link_epoch);
        }
        layout.segment.u64_at(8).store(link_epoch, Ordering::Relaxed);
        layout.segment.u64_at(0).store(MAGIC, Ordering::Release);
        Ok(layout)
    }

    /// Takes the one place beside the creator, and the name away.
    pub(super) fn open(link: &LinkDescriptor) -> Result<Self, Error> {
        if link.kind != LinkKind::Shm {
            let text = format!("link kind is {:?}: this end opens shm", link.kind);
            return Err(Error::new(Reason::UnsupportedParameter, text));
        }
        let gone = |detail: String| {
            let name = &link.name;
            let text = format!(
                "link {name} cannot be opened: a newer one exists, or the host's memory is not shared"
            );
            Error::new(Reason::NotReady, text).detail(detail)
        };
        let sizes = sizes(link.slots_in, link.slots_out, link.slot_bytes)?;
        let segment = Segment::open(&link.name, sizes.total).map_err(|error| gone(error.to_string()))?;
        let LinkDescriptor { slots_in, slots_out, slot_bytes, .. } = *link;
        let layout = Self { segment, slots_in, slots_out, slot_bytes, sizes };
        let magic = layout.segment.u64_at(0).load(Ordering::Acquire);
        let epoch = layout.segment.u64_at(8).load(Ordering::Relaxed);
        if magic != MAGIC || epoch != link.link_epoch {
            return Err(gone(format!("it holds magic {magic:#x} and link epoch {epoch}")));
        }
        if layout.segment.u32_at(CACHE_LINE).swap(1, Ordering::AcqRel) != 0 {
            return Err(gone("it has been opened already".to_owned()));
        }
        layout.segment.unlink();
        Ok(layout)
    }

    pub(super) fn descriptor(&self, link_epoch: u64) -> LinkDescriptor {
        LinkDescriptor {
            kind: LinkKind::Shm,
            name: self.segment.name().to_owned(),
            slots_in: self.slots_in,
            slots_out: self.slots_out,
            slot_bytes: self.slot_bytes,
            link_epoch,
        }
    }

    /// Set by an end when it goes.
    pub(super) fn closed(&self, side: Side) -> &AtomicU32 {
        let line = match side {
            Side::Stage0 => 2,
            Side::Leader => 3,
        };
        self.segment.u32_at(line * CACHE_LINE)
    }

    /// The slots that `side` writes.
    pub(super) fn ring(&self, side: Side) -> std::ops::Range<u32> {
        match side {
            Side::Stage0 => 0..self.slots_in,
            Side::Leader => self.slots_in..self.slots_in + self.slots_out,
        }
    }

    pub(super) fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    pub(super) fn slot(&self, number: LinkSlot) -> Slot<'_> {
        Slot { word: self.segment.u64_at(Self::header(number)), number }
    }

    /// `len` bytes of the slot's content, at most `slot_bytes`.
    pub(super) fn content(&self, number: LinkSlot, len: usize) -> *mut u8 {
        assert!(len as u64 <= self.slot_bytes, "{len} bytes do not fit a slot");
        self.segment.span(self.sizes.contents + number.0 as usize * self.sizes.stride, len)
    }

    /// Writer, between `begin_write` and `end_write`: what the slot's content is.
    pub(super) fn set_label(&self, spec: &TensorSpec) {
        for (at, value) in label(spec).into_iter().enumerate() {
            self.segment.u64_at(Self::header(spec.slot) + 8 + at * 8).store(value, Ordering::Relaxed);
        }
    }

    /// Reader, between `begin_read` and `end_read`.
    pub(super) fn has_label(&self, spec: &TensorSpec) -> bool {
        label(spec).into_iter().enumerate().all(|(at, value)| {
            self.segment.u64_at(Self::header(spec.slot) + 8 + at * 8).load(Ordering::Relaxed) == value
        })
    }

    fn header(number: LinkSlot) -> usize {
        PAGE + number.0 as usize * SLOT_HEADER
    }
}

/// Key and dtype, byte length, dimensions, then the shape, as the words that follow a slot's own.
fn label(spec: &TensorSpec) -> [u64; 3 + MAX_DIMS] {
    let key = match spec.key {
        TensorKey::LatentsIn => 1,
        TensorKey::ConditioningEmbeds => 2,
        TensorKey::ContextFrames => 3,
        TensorKey::LatentsOut => 4,
    };
    let dtype = match spec.dtype {
        Dtype::F32 => 1,
        Dtype::Bf16 => 2,
    };
    let mut words = [0; 3 + MAX_DIMS];
    words[0] = key << 8 | dtype;
    words[1] = spec.byte_len;
    words[2] = spec.shape.len() as u64;
    for (word, dim) in words[3..].iter_mut().zip(&spec.shape) {
        *word = dim.cast_unsigned();
    }
    words
}
