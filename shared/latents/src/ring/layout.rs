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
pub(crate) enum Side {
    Stage0,
    Leader,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Stage0 => Self::Leader,
            Self::Leader => Self::Stage0,
        }
    }
}

/// The two rings, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    slots_in: u32,
    slots_out: u32,
    slot_bytes: u64,
}

impl Shape {
    /// # Errors
    /// `bad_field` for a size that is not allowed.
    pub(crate) fn new(slots_in: u32, slots_out: u32, slot_bytes: u64) -> Result<Self, Error> {
        let bad = |text: String| Err(Error::new(Reason::BadField, text));
        for (name, slots) in [("slots_in", slots_in), ("slots_out", slots_out)] {
            if slots == 0 || slots > MAX_SLOTS {
                return bad(format!("{name} is {slots}: 1 to {MAX_SLOTS} are allowed"));
            }
        }
        if slot_bytes == 0 || slot_bytes > MAX_SLOT_BYTES {
            return bad(format!("slot_bytes is {slot_bytes}: 1 to {MAX_SLOT_BYTES} are allowed"));
        }
        Ok(Self { slots_in, slots_out, slot_bytes })
    }

    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn of(link: &LinkDescriptor) -> Result<Self, Error> {
        Self::new(link.slots_in, link.slots_out, link.slot_bytes)
    }

    /// Slots of the ring that `side` writes.
    pub(crate) fn slots_of(self, side: Side) -> usize {
        match side {
            Side::Stage0 => self.slots_in as usize,
            Side::Leader => self.slots_out as usize,
        }
    }

    fn slots(self) -> usize {
        (self.slots_in + self.slots_out) as usize
    }

    /// Bytes from one slot's content to the next one's.
    pub(crate) fn stride(self) -> usize {
        (self.slot_bytes as usize).next_multiple_of(PAGE)
    }

    /// Bytes of all contents.
    pub(crate) fn contents(self) -> usize {
        self.slots() * self.stride()
    }

    /// Bytes before the contents.
    fn headers(self) -> usize {
        PAGE + (self.slots() * SLOT_HEADER).next_multiple_of(PAGE)
    }

    fn segment(self, kind: LinkKind) -> usize {
        self.headers() + if kind == LinkKind::Shm { self.contents() } else { 0 }
    }

    /// Where a slot's content begins among all contents.
    ///
    /// # Panics
    /// For more than a slot holds: a defect of the caller.
    pub(crate) fn content(self, number: LinkSlot, len: usize) -> usize {
        assert!(len as u64 <= self.slot_bytes, "{len} bytes do not fit a slot");
        number.0 as usize * self.stride()
    }
}

/// What a link's memory on a device is found by.
pub(crate) type Handle = [u8; CACHE_LINE];

/// The segment, by the names of what lies in it:
///
/// ```text
/// page 0     magic, link epoch | opened | closed by stage0 | closed by the leader | handle
/// headers    two cache lines a slot: word, key, dtype, byte length, dimensions, shape
/// contents   slot_bytes a slot, each starting on a page; here unless the handle says where else
/// ```
#[derive(Debug)]
pub(crate) struct Layout {
    segment: Segment,
    kind: LinkKind,
    shape: Shape,
}

impl Layout {
    pub(crate) fn create(
        kind: LinkKind,
        name: &str,
        shape: Shape,
        handle: &Handle,
        link_epoch: u64,
    ) -> Result<Self, Error> {
        let total = shape.segment(kind);
        let segment = Segment::create(name, total).map_err(|error| {
            Error::new(Reason::Internal, format!("no link of {total} bytes can be made"))
                .detail(error.to_string())
        })?;
        let layout = Self { segment, kind, shape };
        for slot in 0..shape.slots() as u32 {
            layout.slot(LinkSlot(slot)).format(link_epoch);
        }
        // SAFETY: a place of its own, which nobody reads before the magic is there.
        unsafe { handle.as_ptr().copy_to_nonoverlapping(layout.handle_at(), handle.len()) };
        layout.segment.u64_at(8).store(link_epoch, Ordering::Relaxed);
        layout.segment.u64_at(0).store(MAGIC, Ordering::Release);
        Ok(layout)
    }

    /// For the words of one end alone: it has no name.
    pub(crate) fn private(kind: LinkKind, name: &str, shape: Shape, link_epoch: u64) -> Result<Self, Error> {
        let layout = Self::create(kind, name, shape, &[0; CACHE_LINE], link_epoch)?;
        layout.segment.unlink();
        Ok(layout)
    }

    /// Takes the one place beside the creator, and the name away.
    pub(crate) fn open(kind: LinkKind, link: &LinkDescriptor) -> Result<Self, Error> {
        if link.kind != kind {
            let text = format!("link kind is {:?}: this end opens {kind:?}", link.kind);
            return Err(Error::new(Reason::UnsupportedParameter, text));
        }
        let gone = |detail: String| {
            let name = &link.name;
            let text = format!(
                "link {name} cannot be opened: a newer one exists, or the host's memory is not shared"
            );
            Error::new(Reason::NotReady, text).detail(detail)
        };
        let shape = Shape::of(link)?;
        let segment =
            Segment::open(&link.name, shape.segment(kind)).map_err(|error| gone(error.to_string()))?;
        let layout = Self { segment, kind, shape };
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

    pub(crate) fn descriptor(&self, link_epoch: u64) -> LinkDescriptor {
        LinkDescriptor {
            kind: self.kind,
            name: self.segment.name().to_owned(),
            slots_in: self.shape.slots_in,
            slots_out: self.shape.slots_out,
            slot_bytes: self.shape.slot_bytes,
            link_epoch,
            meeting: None,
        }
    }

    fn handle_at(&self) -> *mut u8 {
        self.segment.span(4 * CACHE_LINE, size_of::<Handle>())
    }

    pub(crate) fn handle(&self) -> Handle {
        let mut handle = [0; size_of::<Handle>()];
        // SAFETY: written once, before the magic that `open` has seen.
        unsafe { self.handle_at().copy_to_nonoverlapping(handle.as_mut_ptr(), handle.len()) };
        handle
    }

    /// Asked by the leader: whether stage0's process has it open.
    pub(crate) fn is_shared(&self) -> bool {
        self.segment.is_shared()
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
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
    pub(crate) fn ring(&self, side: Side) -> std::ops::Range<u32> {
        match side {
            Side::Stage0 => 0..self.shape.slots_in,
            Side::Leader => self.shape.slots_in..self.shape.slots() as u32,
        }
    }

    pub(super) fn slot_bytes(&self) -> u64 {
        self.shape.slot_bytes
    }

    pub(super) fn slot(&self, number: LinkSlot) -> Slot<'_> {
        Slot { word: self.segment.u64_at(Self::header(number)), number }
    }

    /// `len` bytes of a slot's content in the segment.
    pub(crate) fn content(&self, number: LinkSlot, len: usize) -> *mut u8 {
        self.segment.span(self.shape.headers() + self.shape.content(number, len), len)
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
