//! The leader's end of the link: one for each lease.

use std::sync::{Mutex, MutexGuard, PoisonError};

use contract::envelope::{Infer, Lease};
use contract::link::{LinkDescriptor, LinkKind};
use contract::model::ModelInfo;
use contract::tensor::{TensorKey, TensorSpec};
use contract::{CellId, Error, Reason};
use engine::CallTensors;
use latents::{LatentLink, Rings};
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
    held: Mutex<Option<Held>>,
}

struct Held {
    lease: Lease,
    link: Box<dyn LatentLink>,
    /// The last result; its slot is taken back if nobody ever reads it.
    delivered: Option<TensorSpec>,
}

impl LinkDesk {
    /// `device`: the one that the leader computes on.
    pub(crate) fn new(kind: LinkKind, device: Device, cell: &CellId, model: &ModelInfo) -> Self {
        let frames = model.frames_per_chunk.max(model.context_frames);
        let numel = |shape: &[i64]| shape.iter().product::<i64>().unsigned_abs();
        let latents = model.sizes.iter().map(|size| numel(&model.latent_shape(*size, frames))).max();
        let largest = latents.unwrap_or_default().max(numel(&model.conditioning_shape()));
        Self {
            kind,
            device,
            prefix: format!("kinemesh-{cell}"),
            slot_bytes: largest * model.dtype.bytes() as u64,
            held: Mutex::default(),
        }
    }

    /// Bytes of the leader's device that the slots of a lease take: none of a GPU's, where they are in shared memory.
    pub(crate) fn device_bytes(&self) -> u64 {
        match (self.kind, self.device) {
            (LinkKind::Shm, Device::Cuda(_)) => 0,
            _ => u64::from(SLOTS_IN + SLOTS_OUT) * self.slot_bytes,
        }
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
        *held = None;
        let rings = Rings {
            prefix: &self.prefix,
            slots_in: SLOTS_IN,
            slots_out: SLOTS_OUT,
            slot_bytes: self.slot_bytes,
            link_epoch: lease.epoch.0,
        };
        let (link, descriptor) = latents::create(self.kind, self.device, &rings)?;
        *held = Some(Held { lease, link, delivered: None });
        Ok(descriptor)
    }

    pub(crate) fn close(&self) {
        *self.lock() = None;
    }

    /// Copies the tensors of a call out and gives their slots back.
    ///
    /// # Errors
    /// `fenced` for an older lease, `not_finite`, and what [`LatentLink::read`] says; no slot is kept then either.
    pub(crate) fn fetch(&self, lease: Lease, infer: &Infer) -> Result<CallTensors, Error> {
        let mut held = self.lock();
        let held = of(&mut held, lease)?;
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
    /// `fenced` for an older lease, and what [`LatentLink::write`] says.
    pub(crate) fn deliver(&self, lease: Lease, latents: &Tensor) -> Result<TensorSpec, Error> {
        let mut held = self.lock();
        let held = of(&mut held, lease)?;
        if let Some(last) = held.delivered.take() {
            // A result that was read is its reader's to give back.
            let _ = held.link.release(last.slot, last.generation);
        }
        let spec = held.link.write(TensorKey::LatentsOut, latents)?;
        held.delivered = Some(spec.clone());
        Ok(spec)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of(held: &mut Option<Held>, lease: Lease) -> Result<&mut Held, Error> {
    held.as_mut()
        .filter(|held| held.lease == lease)
        .ok_or_else(|| Error::new(Reason::Fenced, format!("the link of lease {} is closed", lease.epoch)))
}
