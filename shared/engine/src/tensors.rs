use contract::model::ModelInfo;
use contract::tp::Plan;
use contract::{Error, Reason};
use tch::Tensor;
use wan::noise::block_noise;

use crate::failure;

/// The tensors of one call, f32 on the CPU, as rank 0 has them before it broadcasts them.
#[derive(Debug)]
pub struct CallTensors {
    /// `[1, frames, channels, height/8, width/8]`
    pub latents_in: Tensor,
    /// `[1, text_len, text_dim]`, exactly when the plan says that it follows.
    pub conditioning: Option<Tensor>,
    /// `[1, context_frames, channels, height/8, width/8]`, exactly when the plan recomputes.
    pub context_frames: Option<Tensor>,
}

impl CallTensors {
    /// Fixed values for a warm-up or canary run: a function of plan and seed alone.
    ///
    /// # Errors
    /// `internal` when libtorch refuses the shapes.
    pub fn fixed(model: &ModelInfo, plan: &Plan, seed: u64) -> Result<Self, Error> {
        let latents = |seed: u64, frames: u32| {
            let [_, frames, channels, rows, columns] = model.latent_shape(plan.size, frames);
            block_noise(seed, 0, frames, channels, rows, columns)
                .map_err(|e| failure::torch("warm-up noise", &e))
        };
        let text = || {
            let [_, rows, width] = model.conditioning_shape();
            block_noise(seed + 2, 0, 1, 1, rows, width)
                .and_then(|noise| noise.f_view([1, rows, width]))
                .map_err(|e| failure::torch("warm-up conditioning", &e))
        };
        Ok(Self {
            latents_in: latents(seed, plan.num_latent_frames)?,
            conditioning: plan.conditioning_follows.then(text).transpose()?,
            context_frames: plan
                .do_kv_recompute
                .then(|| latents(seed + 1, model.context_frames))
                .transpose()?,
        })
    }

    /// # Errors
    /// `not_finite`, naming the tensor.
    pub fn check_finite(&self) -> Result<(), Error> {
        let named = [
            ("latents_in", Some(&self.latents_in)),
            ("conditioning_embeds", self.conditioning.as_ref()),
            ("context_frames", self.context_frames.as_ref()),
        ];
        for (name, tensor) in named {
            let Some(tensor) = tensor else { continue };
            let finite = tensor
                .f_isfinite()
                .and_then(|finite| finite.f_all())
                .and_then(|all| i64::try_from(&all))
                .map_err(|e| failure::torch("checking for finite values", &e))?;
            if finite == 0 {
                return Err(Error::new(
                    Reason::NotFinite,
                    format!("{name} holds a value that is not finite"),
                ));
            }
        }
        Ok(())
    }
}
