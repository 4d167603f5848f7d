//! The life of one slot: a single word in shared memory, moved on by compare-and-exchange only.
//!
//! ```text
//! free ── writer ──▶ writing ──▶ posted ── reader ──▶ reading ──▶ read
//!  ▲                               │ writer or reader               │ reader (who may read again)
//!  └───────────────────────────────┴────────────────────────────────┘
//! ```
//!
//! The word holds the generation beside the state, so a transition asked for by a stale spec finds another word.

use std::sync::atomic::{AtomicU64, Ordering};

use contract::{Error, Generation, LinkSlot, Reason};

const STATE_BITS: u32 = 4;
const COUNT_BITS: u32 = 36;
/// Of the link epoch, in the generation's upper part: specs of other links name no generation of this one.
const EPOCH_BITS: u32 = 64 - STATE_BITS - COUNT_BITS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    Writing,
    Posted,
    Reading,
    Read,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word(u64);

impl Word {
    fn new(generation: Generation, state: State) -> Self {
        let state = match state {
            State::Free => 0,
            State::Writing => 1,
            State::Posted => 2,
            State::Reading => 3,
            State::Read => 4,
        };
        Self(generation.0 << STATE_BITS | state)
    }

    fn generation(self) -> Generation {
        Generation(self.0 >> STATE_BITS)
    }

    /// `None` for a word that none of us wrote.
    fn state(self) -> Option<State> {
        match self.0 & ((1 << STATE_BITS) - 1) {
            0 => Some(State::Free),
            1 => Some(State::Writing),
            2 => Some(State::Posted),
            3 => Some(State::Reading),
            4 => Some(State::Read),
            _ => None,
        }
    }
}

/// The generation before the first write of the link `link_epoch`.
pub(super) fn first_generation(link_epoch: u64) -> Generation {
    Generation((link_epoch & ((1 << EPOCH_BITS) - 1)) << COUNT_BITS)
}

/// One slot's word. `number` is for error texts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot<'a> {
    pub(super) word: &'a AtomicU64,
    pub(super) number: LinkSlot,
}

impl Slot<'_> {
    pub(super) fn format(&self, link_epoch: u64) {
        self.word.store(Word::new(first_generation(link_epoch), State::Free).0, Ordering::Release);
    }

    /// As it is now; the other end may move it on at any time.
    pub(super) fn now(&self) -> (Generation, Option<State>) {
        let word = Word(self.word.load(Ordering::Acquire));
        (word.generation(), word.state())
    }

    /// Whether it still has that generation, unread or read.
    pub(super) fn holds(&self, generation: Generation) -> bool {
        let (now, state) = self.now();
        now == generation && matches!(state, Some(State::Posted | State::Reading | State::Read))
    }

    pub(super) fn is_free(&self) -> bool {
        self.now().1 == Some(State::Free)
    }

    /// Writer: takes a free slot for a new generation.
    pub(super) fn begin_write(&self) -> Option<Generation> {
        let (before, state) = self.now();
        let generation = before.next();
        // Running out of counts (2^36 writes) closes the slot rather than repeating a generation of the next epoch.
        let fits = generation.0 >> COUNT_BITS == before.0 >> COUNT_BITS;
        let taken = state == Some(State::Free)
            && fits
            && self.exchange((before, State::Free), (generation, State::Writing));
        taken.then_some(generation)
    }

    /// Writer: all bytes are in the slot.
    pub(super) fn end_write(&self, generation: Generation) -> Result<(), Error> {
        self.go(generation, State::Writing, State::Posted)
    }

    /// Reader: from here on nobody can give the slot to a writer until `end_read`. Returns the state to go back to.
    pub(super) fn begin_read(&self, generation: Generation) -> Result<State, Error> {
        for from in [State::Posted, State::Read] {
            if self.exchange((generation, from), (generation, State::Reading)) {
                return Ok(from);
            }
        }
        Err(self.refusal(generation))
    }

    /// Reader: fails when the word is not as `begin_read` left it, so that the bytes read are not to be used.
    pub(super) fn end_read(&self, generation: Generation, to: State) -> Result<(), Error> {
        self.go(generation, State::Reading, to)
    }

    /// Gives the slot back out of one of the states in which the caller holds it.
    pub(super) fn release(&self, generation: Generation, from: &[State]) -> Result<(), Error> {
        let freed = |from: &State| self.exchange((generation, *from), (generation, State::Free));
        if from.iter().any(freed) { Ok(()) } else { Err(self.refusal(generation)) }
    }

    fn go(&self, generation: Generation, from: State, to: State) -> Result<(), Error> {
        if self.exchange((generation, from), (generation, to)) {
            Ok(())
        } else {
            Err(self.refusal(generation))
        }
    }

    fn exchange(&self, from: (Generation, State), to: (Generation, State)) -> bool {
        // A spec's generation that does not fit its bits would be taken for another one.
        let fits = from.0.0 >> (64 - STATE_BITS) == 0;
        let (from, to) = (Word::new(from.0, from.1), Word::new(to.0, to.1));
        fits && self.word.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn refusal(&self, generation: Generation) -> Error {
        let (now, state) = self.now();
        let slot = self.number;
        match state {
            Some(State::Writing | State::Reading | State::Read) if now == generation => {
                Error::new(Reason::SlotBusy, format!("link slot {slot} is held by the other end"))
            }
            _ if now == generation => {
                Error::new(Reason::StaleSlot, format!("link slot {slot} no longer holds generation {now}"))
            }
            _ => {
                let text = format!("link slot {slot} holds generation {now}, not {generation}");
                Error::new(Reason::StaleSlot, text)
            }
        }
    }
}
