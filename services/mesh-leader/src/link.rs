//! The leader's end of the link: one for each lease.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use contract::envelope::{Infer, Lease};
use contract::link::{LinkDescriptor, LinkKind};
use contract::model::ModelInfo;
use contract::tensor::{TensorKey, TensorSpec};
use contract::{CellId, Error, Reason};
use engine::CallTensors;
use engine::settings::MeshSection;
use latents::far::Closer;
use latents::{Condition, LatentLink, Rings};
use tch::{Device, Tensor};

/// Tensors of a call, for the call that runs, one in quarantine and the next.
const SLOTS_IN: u32 = 9;
/// A result, one kept for a re-ask, one in quarantine, and the next.
const SLOTS_OUT: u32 = 4;

pub(crate) struct LinkDesk {
    kind: LinkKind,
    device: Device,
    prefix: String,
    slot_bytes: u64,
    /// Where stage0 finds the leader's end of a link between hosts.
    bind: String,
    /// Locked for as long as it takes to look: a copy of a tensor has the link's own lock.
    held: Mutex<Option<Arc<Held>>>,
}

struct Held {
    lease: Lease,
    /// For a copy that waits for stage0.
    closer: Option<Closer>,
    link: Mutex<Link>,
}

struct Link {
    link: Box<dyn LatentLink>,
    /// The last result; its slot is taken back if nobody ever reads it.
    delivered: Option<TensorSpec>,
}

impl LinkDesk {
    /// `device`: the one that the leader computes on.
    pub(crate) fn new(mesh: &MeshSection, device: Device, cell: &CellId, model: &ModelInfo) -> Self {
        let frames = model.frames_per_chunk.max(model.context_frames);
        let numel = |shape: &[i64]| shape.iter().product::<i64>().unsigned_abs();
        let latents = model.sizes.iter().map(|size| numel(&model.latent_shape(*size, frames))).max();
        let largest = latents.unwrap_or_default().max(numel(&model.conditioning_shape()));
        Self {
            kind: mesh.link,
            device,
            bind: mesh.link_bind.clone(),
            prefix: format!("kinemesh-{cell}"),
            slot_bytes: largest * model.dtype.bytes() as u64,
            held: Mutex::default(),
        }
    }

    /// Bytes of the leader's device that the slots of a lease take: none of a GPU's, where they are in shared memory.
    pub(crate) fn device_bytes(&self) -> u64 {
        let slots = match (self.kind, self.device) {
            (LinkKind::Shm, Device::Cuda(_)) => 0,
            // Its own ring, and a place for what is read. NCCL's own buffers come on top.
            (LinkKind::Nccl, _) => SLOTS_OUT + 1,
            _ => SLOTS_IN + SLOTS_OUT,
        };
        u64::from(slots) * self.slot_bytes
    }

    /// New memory for a new lease; that of the old one is gone.
    ///
    /// # Errors
    /// `fenced` for an older lease, and what [`latents::create`] says.
    pub(crate) fn open(&self, lease: Lease) -> Result<LinkDescriptor, Error> {
        let mut held = self.lock();
        // Two may be opened at a time; the newer one stays.
        if let Some(newer) = held.as_ref().filter(|held| held.lease.epoch > lease.epoch) {
            let text = format!("lease {}: lease {} is in force", lease.epoch, newer.lease.epoch);
            return Err(Error::new(Reason::Fenced, text));
        }
        end(held.take().as_deref());
        let rings = Rings {
            prefix: &self.prefix,
            slots_in: SLOTS_IN,
            slots_out: SLOTS_OUT,
            slot_bytes: self.slot_bytes,
            link_epoch: lease.epoch.0,
            bind: &self.bind,
        };
        let (link, descriptor) = latents::create(self.kind, self.device, &rings)?;
        let closer = link.closer();
        *held = Some(Arc::new(Held { lease, closer, link: Mutex::new(Link { link, delivered: None }) }));
        Ok(descriptor)
    }

    /// Waits for nothing: a copy that is under way has the link until it has ended, which is soon.
    pub(crate) fn close(&self) {
        end(self.lock().take().as_deref());
    }

    /// Copies the tensors of a call out and gives their slots back.
    ///
    /// # Errors
    /// `fenced` for an older lease, `not_finite`, `not_ready` when the link has failed, and what [`LatentLink::read`] says; no
    /// slot is kept then either.
    pub(crate) fn fetch(&self, lease: Lease, infer: &Infer) -> Result<CallTensors, Error> {
        let held = self.of(lease)?;
        let mut held = locked(&held.link);
        let mut read = Vec::with_capacity(infer.tensors.len());
        let mut failed = None;
        for spec in &infer.tensors {
            match held.link.read(spec) {
                Ok(tensor) => {
                    // Read by now, so it is ours to give back; a slot of another generation is not touched.
                    let _ = held.link.release(spec.slot, spec.generation);
                    read.push((spec.key, tensor));
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Condition::Failed(error) = held.link.condition() {
            // No rank has heard of the call: over a new link it can be asked for as it is.
            return Err(Error { reason: Reason::NotReady, ..error });
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let mut take = |key: TensorKey| -> Option<Tensor> {
            let at = read.iter().position(|(held, _)| *held == key)?;
            Some(read.swap_remove(at).1)
        };
        let missing = || Error::new(Reason::MissingTensor, "latents_in is missing: every call needs it");
        let tensors = CallTensors {
            latents_in: take(TensorKey::LatentsIn).ok_or_else(missing)?,
            conditioning: take(TensorKey::ConditioningEmbeds),
            context_frames: take(TensorKey::ContextFrames),
        };
        tensors.check_finite()?;
        Ok(tensors)
    }

    /// Writes a result.
    ///
    /// # Errors
    /// `fenced` for an older lease, `call_aborted` when stage0's end of the link is gone, and what [`LatentLink::write`] says.
    pub(crate) fn deliver(&self, lease: Lease, latents: &Tensor) -> Result<TensorSpec, Error> {
        let held = self.of(lease)?;
        let mut held = locked(&held.link);
        if let Some(last) = held.delivered.take() {
            // A result that was read is its reader's to give back.
            let _ = held.link.release(last.slot, last.generation);
        }
        let spec = held.link.write(TensorKey::LatentsOut, latents).map_err(|error| match error.reason {
            // The link is, and not stage0: its lease is in force.
            Reason::Fenced => Error { reason: Reason::CallAborted, ..error },
            _ => error,
        })?;
        held.delivered = Some(spec.clone());
        Ok(spec)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Held>>> {
        locked(&self.held)
    }

    fn of(&self, lease: Lease) -> Result<Arc<Held>, Error> {
        let held = self.lock();
        let held = held.as_ref().filter(|held| held.lease == lease);
        held.cloned()
            .ok_or_else(|| Error::new(Reason::Fenced, format!("the link of lease {} is closed", lease.epoch)))
    }
}

fn end(held: Option<&Held>) {
    if let Some(closer) = held.and_then(|held| held.closer.as_ref()) {
        closer.close("the leader has closed it");
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
