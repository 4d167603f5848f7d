//! The one mapping from a session's state to the envelope, and the check before anything is sent.

use contract::envelope::Infer;
use contract::error::{Error, Reason};
use contract::ids::{Digest, Generation, LinkSlot, SessionId, SessionSlot};
use contract::model::{ModelInfo, Size};
use contract::tensor::{Dtype, TensorKey, TensorSpec};
use tch::{Kind, Tensor};

use crate::history::Position;
use crate::settings::Settings;

/// A tensor ready to travel: on the CPU, contiguous, in the dtype of the link, every value finite.
#[derive(Debug)]
pub(crate) struct Cargo(Tensor);

impl Cargo {
    /// # Errors
    /// `not_finite`, naming `key`.
    pub(crate) fn new(key: TensorKey, tensor: &Tensor, dtype: Dtype) -> Result<Self, Error> {
        let tensor = tensor.to_device(tch::Device::Cpu).to_kind(kind(dtype)).contiguous();
        if finite(&tensor) {
            return Ok(Self(tensor));
        }
        let key = key.as_str();
        Err(Error::new(Reason::NotFinite, format!("{key} holds a value that is NaN or infinite")))
    }

    #[cfg(test)]
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.0
    }

    /// The same memory once more.
    fn share(&self) -> Self {
        Self(self.0.shallow_clone())
    }
}

/// An embedding ready to travel, and what the mesh knows it by: made once for all the chunks that it conditions.
#[derive(Debug)]
pub(crate) struct EmbeddingCargo {
    cargo: Cargo,
    digest: Digest,
}

impl EmbeddingCargo {
    /// # Errors
    /// As [`Cargo::new`].
    pub(crate) fn new(embedding: &Tensor, dtype: Dtype) -> Result<Self, Error> {
        let cargo = Cargo::new(TensorKey::ConditioningEmbeds, embedding, dtype)?;
        let digest = digest(&cargo.0)?;
        Ok(Self { cargo, digest })
    }

    pub(crate) fn share(&self) -> Self {
        Self { cargo: self.cargo.share(), digest: self.digest.clone() }
    }
}

/// The tensors of one call.
#[derive(Debug)]
pub(crate) struct Tensors {
    /// `[1, frames, C, h, w]`
    pub latents_in: Cargo,
    /// `[1, text_len, text_dim]`. Travels only when the mesh does not hold it.
    pub conditioning: EmbeddingCargo,
    /// `[1, context_frames, C, h, w]`, exactly when the cache is rebuilt.
    pub context: Option<Cargo>,
}

impl Tensors {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (TensorKey, &Tensor)> {
        let context = self.context.as_ref().map(|context| (TensorKey::ContextFrames, &context.0));
        [
            (TensorKey::LatentsIn, &self.latents_in.0),
            (TensorKey::ConditioningEmbeds, &self.conditioning.cargo.0),
        ]
        .into_iter()
        .chain(context)
    }
}

/// Which session asks, and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking<'a> {
    pub session: SessionId,
    pub slot: SessionSlot,
    pub size: Size,
    pub position: &'a Position,
    pub settings: &'a Settings,
    /// Not the conditioning of the chunk before.
    pub new_conditioning: bool,
}

/// The call for the chunk at `asking.position`. Its tensors lie nowhere yet: the link decides where.
///
/// # Errors
/// Preflight: the first thing wrong with the call. Nothing was sent.
pub(crate) fn infer(model: &ModelInfo, asking: Asking, tensors: &Tensors) -> Result<Infer, Error> {
    let Asking { session, slot, size, position, settings, new_conditioning } = asking;
    let starts = position.current_start_frame == 0;
    let infer = Infer {
        session,
        session_slot: slot,
        chunk_index: position.chunk_index,
        cache_epoch: position.cache_epoch,
        size,
        current_start_frame: position.current_start_frame,
        num_latent_frames: model.frames_per_chunk,
        denoising_steps: settings.steps.clone(),
        do_kv_recompute: position.context.is_some(),
        init_cache: position.init_cache,
        reset_kv_cache: starts,
        reset_crossattn_cache: new_conditioning || position.init_cache,
        base_seed: settings.seed,
        kv_cache_attention_bias: settings.bias,
        noise_scale: None,
        tp_plan: None,
        expected_generator_calls: model.expected_calls(settings.steps.len(), position.context.is_some()),
        conditioning: tensors.conditioning.digest.clone(),
        tensors: tensors.iter().map(|(key, tensor)| unplaced(key, tensor)).collect::<Result<_, _>>()?,
    };
    infer.validate(model)?;
    Ok(infer)
}

fn finite(tensor: &Tensor) -> bool {
    // A sum is NaN or infinite if any term is; no mask is made. Finite terms of a latent's size cannot overflow it.
    tensor.sum(Kind::Double).double_value(&[]).is_finite()
}

fn unplaced(key: TensorKey, tensor: &Tensor) -> Result<TensorSpec, Error> {
    let dtype = dtype(key, tensor.kind())?;
    Ok(TensorSpec {
        key,
        dtype,
        shape: tensor.size(),
        slot: LinkSlot(0),
        byte_offset: 0,
        byte_len: (tensor.numel() * dtype.bytes()) as u64,
        generation: Generation(0),
    })
}

fn dtype(key: TensorKey, kind: Kind) -> Result<Dtype, Error> {
    match kind {
        Kind::Float => Ok(Dtype::F32),
        Kind::BFloat16 => Ok(Dtype::Bf16),
        other => {
            let key = key.as_str();
            Err(Error::new(Reason::BadDtype, format!("{key} has dtype {other:?}: f32 or bf16 is expected")))
        }
    }
}

/// The dtype of the link as torch names it.
pub(crate) fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::Bf16 => Kind::BFloat16,
    }
}

/// A tensor's values as they lie in memory, row by row: little-endian on every machine we run on.
///
/// # Errors
/// `bad_dtype` for one that no link carries.
pub(crate) fn bytes(tensor: &Tensor) -> Result<(Dtype, Vec<u8>), Error> {
    let tensor = tensor.to_device(tch::Device::Cpu).contiguous();
    let dtype = dtype(TensorKey::LatentsOut, tensor.kind())?;
    let mut bytes = vec![0u8; tensor.numel() * dtype.bytes()];
    tensor
        .f_copy_data_u8(&mut bytes, tensor.numel())
        .map_err(|e| Error::new(Reason::Internal, "a tensor could not be read").detail(e.to_string()))?;
    Ok((dtype, bytes))
}

/// Identity of a tensor's bytes, shape and dtype.
///
/// # Errors
/// As [`bytes`].
pub(crate) fn digest(tensor: &Tensor) -> Result<Digest, Error> {
    let (dtype, bytes) = bytes(tensor)?;
    let shape: Vec<u8> = tensor.size().iter().flat_map(|n| n.to_le_bytes()).collect();
    Ok(Digest::of(&[dtype.as_str().as_bytes(), &shape, &bytes]))
}

#[cfg(test)]
mod tests {
    use contract::error::Reason;
    use tch::Device;

    use super::*;
    use crate::history::History;
    use crate::history::tests::model;

    const SIZE: Size = Size { width: 64, height: 64 };

    fn zeros(shape: &[i64]) -> Tensor {
        Tensor::zeros(shape, (Kind::Float, Device::Cpu))
    }

    fn tensors(context: bool) -> Tensors {
        let embedding = zeros(&model().conditioning_shape());
        Tensors {
            latents_in: Cargo(zeros(&model().latent_shape(SIZE, 3))),
            conditioning: EmbeddingCargo::new(&embedding, Dtype::F32).unwrap(),
            context: context.then(|| Cargo(zeros(&model().latent_shape(SIZE, 3)))),
        }
    }

    fn call(chunk: usize, tensors: &Tensors) -> Result<Infer, Error> {
        let mut history = History::new(&model());
        (0..chunk).for_each(|_| history.completed());
        let asking = Asking {
            session: SessionId::random(),
            slot: SessionSlot(0),
            size: SIZE,
            position: &history.next(),
            settings: &Settings::new(&model()),
            new_conditioning: false,
        };
        infer(&model(), asking, tensors)
    }

    #[test]
    fn the_calls_of_a_history_pass_the_leaders_own_check() {
        let first = call(0, &tensors(false)).unwrap();
        assert_eq!((first.expected_generator_calls, first.do_kv_recompute), (4, false));
        assert!(first.init_cache && first.reset_kv_cache && first.reset_crossattn_cache);
        let later = call(5, &tensors(true)).unwrap();
        assert_eq!((later.expected_generator_calls, later.current_start_frame), (5, 15));
        assert!(!later.init_cache && !later.reset_kv_cache && !later.reset_crossattn_cache);
    }

    #[test]
    fn preflight_stops_what_the_leader_would_refuse() {
        let refused = |chunk, tensors: &Tensors| call(chunk, tensors).unwrap_err().reason;
        assert_eq!(refused(1, &tensors(false)), Reason::MissingTensor);
        let bad_shape = Tensors { latents_in: Cargo(zeros(&[1, 3, 16, 8, 9])), ..tensors(false) };
        assert_eq!(refused(0, &bad_shape), Reason::BadShape);
        let half = Cargo(tensors(false).latents_in.0.to_kind(Kind::BFloat16));
        let half = Tensors { latents_in: half, ..tensors(false) };
        assert_eq!(refused(0, &half), Reason::BadDtype);
    }

    #[test]
    fn what_is_not_finite_does_not_travel() {
        for value in [f64::NAN, f64::INFINITY] {
            let latents = zeros(&[1, 3, 16, 8, 8]);
            assert!(Cargo::new(TensorKey::LatentsIn, &latents, Dtype::F32).is_ok());
            let _ = latents.view([-1]).narrow(0, 77, 1).fill_(value);
            let error = Cargo::new(TensorKey::LatentsIn, &latents, Dtype::F32).unwrap_err();
            assert_eq!(error.reason, Reason::NotFinite);
            assert!(error.message.contains("latents_in"));
        }
    }

    #[test]
    fn a_conditioning_is_known_by_what_travels() {
        let embedding = Tensor::full([1, 2, 3], 0.1, (Kind::Float, Device::Cpu));
        let carried = EmbeddingCargo::new(&embedding, Dtype::Bf16).unwrap();
        assert_eq!(carried.digest, digest(&embedding.to_kind(Kind::BFloat16)).unwrap());
        assert_eq!(carried.share().digest, carried.digest);
    }

    #[test]
    fn equal_tensors_have_equal_digests_and_others_do_not() {
        let ones = zeros(&[2, 3]) + 1.0;
        assert_eq!(digest(&ones).unwrap(), digest(&(zeros(&[2, 3]) + 1.0)).unwrap());
        assert_ne!(digest(&ones).unwrap(), digest(&ones.reshape([3, 2])).unwrap());
        assert_ne!(digest(&ones).unwrap(), digest(&ones.to_kind(Kind::BFloat16)).unwrap());
    }
}
