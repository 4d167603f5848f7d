//! The context frames of a recompute pass.

use tch::{TchError, Tensor};

/// `[head frame | last latents of the chunk before]`, `frames` latents in all: `[1, frames, C, h, w]`.
///
/// `head` is `[1, 1, C, h, w]`, `latents` the chunk before, `[1, F, C, h, w]` with `F >= frames - 1`.
///
/// # Errors
/// The shapes do not fit together.
pub(crate) fn context_frames(head: &Tensor, latents: &Tensor, frames: i64) -> Result<Tensor, TchError> {
    let kept = frames - 1;
    let last = latents.f_narrow(1, latents.size()[1] - kept, kept)?;
    // The head was encoded on this process's device, the latents came over the link.
    Tensor::f_cat(&[head.f_to_device(latents.device())?.f_to_kind(latents.kind())?, last], 1)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use safetensors::SafeTensors;

    use super::*;
    use crate::history::Head;

    include!("../../../shared/wan/tests/support/folder.rs");

    /// The Krea run of the reference data.
    pub(crate) struct GoldenStream {
        tensors: HashMap<String, Tensor>,
        run: serde_json::Value,
    }

    impl GoldenStream {
        pub(crate) fn open() -> Self {
            let path = path("causal_dit_stream_krea.safetensors");
            let (_, metadata) = SafeTensors::read_metadata(&std::fs::read(&path).unwrap()).unwrap();
            let run = &metadata.metadata().as_ref().expect("metadata")["run"];
            let tensors = Tensor::read_safetensors(path).unwrap().into_iter().collect();
            Self { tensors, run: serde_json::from_str(run).unwrap() }
        }

        /// A number that the run was made with.
        pub(crate) fn number(&self, key: &str) -> u32 {
            let stated = self.run[key].as_u64().unwrap_or_else(|| panic!("the run states no {key}"));
            stated.try_into().unwrap()
        }

        pub(crate) fn steps(&self) -> usize {
            self.run["denoising_steps"].as_array().expect("denoising_steps in the run").len()
        }

        pub(crate) fn find(&self, chunk: usize, key: &str) -> Option<&Tensor> {
            self.tensors.get(&format!("chunk{chunk}.{key}"))
        }

        /// The result of a chunk, which is the clean prediction of its last step.
        fn latents(&self, chunk: usize) -> Option<&Tensor> {
            let last = self.steps() - 1;
            self.find(chunk, "latents").or_else(|| self.find(chunk, &format!("step{last}.x0_pred")))
        }

        /// Compares the context that chunk `chunk` was rebuilt from, where the set has it and what it is made of.
        pub(crate) fn check_context(&self, chunk: usize, head: Head) {
            let Some(expected) = self.find(chunk, "context_frames") else { return };
            let Some(latents) = self.latents(chunk - 1) else { return };
            let head = match head {
                Head::FirstLatent => self.latents(0),
                Head::Reencoded { .. } => self.find(chunk, "reencoded_first_frame"),
            };
            // A head that the set does not give is the one of the context itself: what is left then are the last latents.
            let head = head.unwrap_or(expected).narrow(1, 0, 1);
            let frames = self.number("kv_cache_num_frames").into();
            let context = context_frames(&head, latents, frames).unwrap();
            assert!(context.equal(expected), "chunk {chunk}: context_frames");
        }
    }

    #[test]
    fn a_context_is_the_head_and_the_last_latents() {
        let latents = Tensor::arange(3, (tch::Kind::Float, tch::Device::Cpu)).reshape([1, 3, 1, 1, 1]);
        let head = Tensor::full([1, 1, 1, 1, 1], 9.0, (tch::Kind::Double, tch::Device::Cpu));
        let context =
            |frames| context_frames(&head, &latents, frames).map(|c| Vec::<f32>::try_from(c.flatten(0, -1)));
        assert_eq!(context(3).unwrap().unwrap(), [9.0, 1.0, 2.0]);
        assert_eq!(context(2).unwrap().unwrap(), [9.0, 2.0]);
        assert!(context(5).is_err());
    }
}
