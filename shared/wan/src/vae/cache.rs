//! What a stream remembers between calls: for every convolution in time, the last frames it was given.

use tch::Tensor;

/// What one convolution of one stream has seen so far.
#[derive(Debug, Default)]
pub(super) enum Slot {
    /// Nothing: its context is zeros.
    #[default]
    Empty,
    /// A temporal up-sampling let the first latent pass. Its context is still zeros, but it no longer lets pass.
    Passed,
    /// The last frames of its input, `[n, H, W, C]`.
    Frames(Tensor),
}

/// The slots of one stream. A layer knows the number of its slot from construction; slots appear when first used, so an
/// empty set fits every model.
#[derive(Debug, Default)]
pub(super) struct Slots(Vec<Slot>);

impl Slots {
    pub(super) fn is_new(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes(&self) -> u64 {
        let of = |slot: &Slot| match slot {
            Slot::Frames(frames) => (frames.numel() * frames.kind().elt_size_in_bytes()) as u64,
            Slot::Empty | Slot::Passed => 0,
        };
        self.0.iter().map(of).sum()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes what is in a slot and leaves it empty; its layer puts the next content back.
    pub(super) fn take(&mut self, slot: usize) -> Slot {
        self.0.get_mut(slot).map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn put(&mut self, slot: usize, content: Slot) {
        if self.0.len() <= slot {
            self.0.resize_with(slot + 1, Slot::default);
        }
        self.0[slot] = content;
    }

    /// The frames in a slot, if there are any.
    pub(super) fn frames(&self, slot: usize) -> Option<&Tensor> {
        match self.0.get(slot) {
            Some(Slot::Frames(frames)) => Some(frames),
            _ => None,
        }
    }

    /// Stores the last `count` frames of `frames` (all of them where there are fewer), as a copy, so that the much
    /// larger input is not kept alive with them. The memory of what was there before is used again.
    pub(super) fn put_last(&mut self, slot: usize, frames: &Tensor, count: i64) {
        let have = frames.size()[0];
        let count = count.min(have);
        let last = frames.narrow(0, have - count, count);
        match self.0.get_mut(slot) {
            Some(Slot::Frames(kept)) if kept.size() == last.size() => kept.copy_(&last),
            _ => self.put(slot, Slot::Frames(last.copy())),
        }
    }
}

/// Hands out slot numbers while a network is built.
#[derive(Debug, Default)]
pub(super) struct SlotCounter(usize);

impl SlotCounter {
    pub(super) fn next(&mut self) -> usize {
        let slot = self.0;
        self.0 += 1;
        slot
    }
}
