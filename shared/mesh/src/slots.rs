//! Which session's history each KV slot of the mesh holds, as the leader's admission sees it.

use contract::envelope::Infer;
use contract::{CacheEpoch, Error, Reason, SessionId, SessionSlot};

#[derive(Clone, Debug, PartialEq, Eq)]
struct History {
    session: SessionId,
    cache_epoch: CacheEpoch,
    /// Start frame of the only call that continues this history.
    next_frame: u64,
    /// A call runs or failed here: the next one must clear the slot.
    dirty: bool,
    /// RESET was asked since the last call that clears the slot was started.
    reset: bool,
}

#[derive(Clone, Debug)]
pub struct Slots {
    slots: Vec<Option<History>>,
}

impl Slots {
    #[must_use]
    pub fn new(session_slots: u32) -> Self {
        Self { slots: vec![None; session_slots as usize] }
    }

    /// # Errors
    /// `bad_field` for a slot that does not exist; `stale_epoch` for a call that neither clears its slot nor continues
    /// exactly what is in it.
    pub fn check(&self, infer: &Infer) -> Result<(), Error> {
        let slot = infer.session_slot;
        let held = self.slot(slot)?;
        let stale = |text: String| Err(Error::new(Reason::StaleEpoch, text));
        if let Some(history) = held
            && history.session == infer.session
            && infer.cache_epoch < history.cache_epoch
        {
            let (got, now) = (infer.cache_epoch, history.cache_epoch);
            return stale(format!("cache_epoch {got}: slot {slot} is at cache epoch {now}"));
        }
        if infer.init_cache {
            return Ok(());
        }
        let Some(history) = held.as_ref().filter(|history| history.session == infer.session) else {
            return stale(format!(
                "slot {slot} does not hold session {}: init_cache is needed",
                infer.session
            ));
        };
        if history.dirty || history.reset {
            return stale(format!("slot {slot} is dirty: its next call needs init_cache"));
        }
        if history.cache_epoch != infer.cache_epoch {
            let (got, now) = (infer.cache_epoch, history.cache_epoch);
            return stale(format!("cache_epoch {got}: slot {slot} is at {now}, a new one needs init_cache"));
        }
        if history.next_frame != infer.current_start_frame {
            let (got, next) = (infer.current_start_frame, history.next_frame);
            return stale(format!("current_start_frame {got}: slot {slot} continues at {next}"));
        }
        Ok(())
    }

    /// A call runs on the slot: whatever becomes of it, the slot is dirty until it ended well.
    pub fn started(&mut self, infer: &Infer) {
        let history = History {
            session: infer.session,
            cache_epoch: infer.cache_epoch,
            next_frame: infer.current_start_frame,
            dirty: true,
            reset: false,
        };
        if let Some(slot) = self.slots.get_mut(infer.session_slot.0 as usize) {
            *slot = Some(history);
        }
    }

    /// The call ended well.
    pub fn finished(&mut self, infer: &Infer) {
        if let Some(Some(history)) = self.slots.get_mut(infer.session_slot.0 as usize) {
            history.next_frame = infer.current_start_frame + u64::from(infer.num_latent_frames);
            history.dirty = false;
        }
    }

    /// # Errors
    /// `bad_field` for a slot that does not exist.
    pub fn reset(&mut self, slot: SessionSlot) -> Result<(), Error> {
        self.slot(slot)?;
        if let Some(Some(history)) = self.slots.get_mut(slot.0 as usize) {
            history.reset = true;
        }
        Ok(())
    }

    /// A new lease or mesh epoch: no history is left.
    pub fn clear(&mut self) {
        self.slots.fill(None);
    }

    fn slot(&self, slot: SessionSlot) -> Result<&Option<History>, Error> {
        self.slots.get(slot.0 as usize).ok_or_else(|| {
            let count = self.slots.len();
            Error::new(
                Reason::BadField,
                format!("session_slot {slot}: 0 to {} exist", count.saturating_sub(1)),
            )
        })
    }
}
