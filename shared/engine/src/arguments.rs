//! The one mapping from a plan to the generator's arguments.

use contract::tp::Plan;
use contract::{Error, Reason};
use tch::Tensor;
use wan::generator::ChunkArgs;

/// `conditioning` is given when it is not the one that the slot holds already.
///
/// # Errors
/// `bad_field` for a start frame beyond the generator's range.
pub(crate) fn chunk_args<'a>(
    plan: &'a Plan,
    latents_in: &'a Tensor,
    conditioning: Option<&'a Tensor>,
    context_frames: Option<&'a Tensor>,
) -> Result<ChunkArgs<'a>, Error> {
    let start = plan.current_start_frame;
    let current_start_frame = i64::try_from(start)
        .map_err(|_| Error::new(Reason::BadField, format!("current_start_frame is {start}: too large")))?;
    Ok(ChunkArgs {
        current_start_frame,
        latents_in,
        conditioning,
        context_frames,
        denoising_steps: &plan.denoising_steps,
        base_seed: plan.base_seed,
        kv_cache_attention_bias: f64::from(plan.kv_cache_attention_bias),
        init_cache: plan.init_cache,
        reset_kv_cache: plan.reset_kv_cache,
        reset_crossattn_cache: plan.reset_crossattn_cache,
    })
}
