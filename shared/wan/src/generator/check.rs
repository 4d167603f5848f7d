//! What a chunk's arguments must satisfy. Everything is checked before anything changes.

use tch::Tensor;

use super::{ChunkArgs, GenerateError, Generator, latent_size};
use crate::dit::Tp;
use crate::scheduler::NUM_TRAIN_TIMESTEPS;

impl Generator {
    pub(super) fn check(&self, slot: usize, args: &ChunkArgs, tp: &Tp) -> Result<(), GenerateError> {
        self.check_world(tp)?;
        check_steps(args.denoising_steps)?;
        self.check_latents("latents_in", args.latents_in, self.config.num_frame_per_block)?;
        self.check_bias(args.kv_cache_attention_bias)?;
        let block = self.config.num_frame_per_block;
        if args.current_start_frame < 0 || args.current_start_frame % block != 0 {
            let what = format!("{}; allowed: multiples of {block} from 0", args.current_start_frame);
            return refuse("current_start_frame", what);
        }
        if let Some(context) = args.context_frames {
            self.check_context(context, args)?;
        }
        if let Some(prompt) = args.conditioning {
            let (size, dit) = (prompt.size(), &self.config.dit);
            if size.len() != 3 || size[0] != 1 || size[1] > dit.text_len || size[2] != dit.text_dim {
                let expected = format!("[1, <={}, {}]", dit.text_len, dit.text_dim);
                return refuse("conditioning", format!("shape {size:?}; allowed: {expected}"));
            }
        }
        self.check_slot(slot, args)
    }

    fn check_world(&self, tp: &Tp) -> Result<(), GenerateError> {
        let shard = self.dit.shard();
        let (found_rank, found_world) = (tp.collective.rank(), tp.collective.world_size());
        if (found_rank, found_world) == (shard.rank, shard.world) {
            return Ok(());
        }
        Err(GenerateError::World { rank: shard.rank, world: shard.world, found_rank, found_world })
    }

    fn check_latents(&self, name: &'static str, latents: &Tensor, frames: i64) -> Result<(), GenerateError> {
        let (size, config) = (latents.size(), &self.config);
        let [_, ph, pw] = config.dit.patch_size;
        let fits = size.len() == 5
            && size[..3] == [1, frames, config.dit.in_dim]
            && size[3] > 0
            && size[4] > 0
            && size[3] % ph == 0
            && size[4] % pw == 0;
        if fits {
            return Ok(());
        }
        let expected = format!("[1, {frames}, {}, multiple of {ph}, multiple of {pw}]", config.dit.in_dim);
        refuse(name, format!("shape {size:?}; allowed: {expected}"))
    }

    fn check_bias(&self, bias: f64) -> Result<(), GenerateError> {
        if !(bias > 0.0 && bias <= 1.0) {
            return refuse("kv_cache_attention_bias", format!("{bias}; allowed: above 0, up to 1"));
        }
        if bias < 1.0 && !self.config.family.recomputes() {
            let what = format!("{bias}; model {} allows 1 only", self.config.name);
            return refuse("kv_cache_attention_bias", what);
        }
        Ok(())
    }

    fn check_context(&self, context: &Tensor, args: &ChunkArgs) -> Result<(), GenerateError> {
        if !self.config.family.recomputes() {
            return refuse(
                "context_frames",
                format!("model {} does not recompute its cache", self.config.name),
            );
        }
        if args.current_start_frame < self.config.kv_cache_num_frames {
            let what = format!(
                "given at frame {}; allowed from frame {}",
                args.current_start_frame, self.config.kv_cache_num_frames
            );
            return refuse("context_frames", what);
        }
        self.check_latents("context_frames", context, self.config.kv_cache_num_frames)?;
        let (found, expected) = (latent_size(context), latent_size(args.latents_in));
        if found != expected {
            return refuse("context_frames", format!("latent size {found:?}; latents_in has {expected:?}"));
        }
        Ok(())
    }

    fn check_slot(&self, slot: usize, args: &ChunkArgs) -> Result<(), GenerateError> {
        let slots = self.slots.len();
        let Some(state) = self.slots.get(slot) else {
            return Err(GenerateError::Slot { slot, slots });
        };
        let found = latent_size(args.latents_in);
        if let Some((_, held)) = &state.kv
            && *held != found
            && !args.init_cache
        {
            return Err(GenerateError::Size { slot, held: *held, found });
        }
        if args.conditioning.is_none() && state.prompt.is_none() {
            return Err(GenerateError::NoPrompt { slot });
        }
        // With context the cache starts over and any frame index may follow it.
        if args.context_frames.is_none() {
            let (height, width) = found;
            let per_frame = self.config.dit.tokens_per_frame(height, width);
            let starts_over = args.init_cache || args.reset_kv_cache;
            let end = state.kv.as_ref().filter(|_| !starts_over).map_or(0, |(cache, _)| cache.global_end());
            let start = self.start_frame(args.current_start_frame) * per_frame;
            if start != end && start + self.config.num_frame_per_block * per_frame != end {
                let what = format!(
                    "{} does not follow the slot's history of {} frames; it needs context_frames or a history from 0",
                    args.current_start_frame,
                    end / per_frame
                );
                return refuse("current_start_frame", what);
            }
        }
        Ok(())
    }
}

fn check_steps(steps: &[u32]) -> Result<(), GenerateError> {
    let descending = steps.windows(2).all(|pair| pair[0] > pair[1]);
    let in_range = steps.first().is_some_and(|first| *first as usize <= NUM_TRAIN_TIMESTEPS);
    if descending && in_range {
        return Ok(());
    }
    refuse(
        "denoising_steps",
        format!("{steps:?}; allowed: strictly descending, {NUM_TRAIN_TIMESTEPS} at most"),
    )
}

fn refuse(name: &'static str, what: String) -> Result<(), GenerateError> {
    Err(GenerateError::Argument { name, what })
}
