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
    use std::path::PathBuf;

    use super::*;

    pub(crate) fn golden_stream() -> HashMap<String, Tensor> {
        let folder = std::env::var_os("KINEMESH_GOLDENS").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/wan/tests/goldens"),
            PathBuf::from,
        );
        let path = folder.join("causal_dit_stream_krea.safetensors");
        Tensor::read_safetensors(path).unwrap().into_iter().collect()
    }

    #[test]
    fn contexts_are_those_of_the_golden_stream() {
        let golden = golden_stream();
        let get = |chunk: usize, key: &str| golden.get(&format!("chunk{chunk}.{key}"));
        let mut compared = 0;
        for chunk in 1.. {
            let (Some(latents), Some(expected)) = (get(chunk - 1, "latents"), get(chunk, "context_frames"))
            else {
                break;
            };
            let head = match get(chunk, "reencoded_first_frame") {
                Some(head) => head.shallow_clone(),
                None => latents.narrow(1, 0, 1),
            };
            assert!(context_frames(&head, latents, 3).unwrap().equal(expected), "chunk {chunk}");
            compared += 1;
        }
        assert!(compared >= 2, "the set holds only {compared} contexts");
    }
}
