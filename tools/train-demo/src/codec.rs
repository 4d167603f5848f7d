//! A trained VAE in use by the other stages: clips to normalised latents and back, in batches.

use std::path::Path;

use anyhow::Result;
use demo_world::clip::Frame;
use tch::{Device, Kind, Tensor, no_grad};
use wan::config::VaeConfig;

use crate::parameters::{Layout, Parameters, Weights};
use crate::samples::{FRAMES, HEAD_FRAME};
use crate::scenes::BatchRenderer;
use crate::vae::TrainVae;

/// Clips that are drawn and encoded at a time.
const CLIPS: usize = 64;

#[derive(Debug)]
pub struct Codec {
    vae: TrainVae,
    weights: Weights,
    renderer: BatchRenderer,
    /// `[1, z, 1, 1, 1]`
    mean: Tensor,
    std: Tensor,
    kind: Kind,
}

/// What clips encode to.
#[derive(Debug)]
pub struct Encoded {
    /// `[B, 9, z, h, w]`
    pub latents: Tensor,
    /// `[B, 1, z, h, w]`, the frame that leads the context of the third chunk, alone.
    pub heads: Tensor,
    /// `[B, 9, 1, h, w]`, 1 where an object is in a latent's frames or within a latent's width of it.
    pub objects: Tensor,
}

impl Codec {
    /// # Errors
    /// `vae.safetensors` of the folder cannot be read.
    pub fn load(config: &VaeConfig, folder: &Path, device: Device, kind: Kind) -> Result<Self> {
        let mut layout = Layout::default();
        let vae = TrainVae::new(config, &mut layout);
        let mut parameters = Parameters::new(layout, device);
        parameters.import(&[("", &folder.join("vae.safetensors"))])?;
        Ok(Self::new(vae, &parameters, config, device, kind))
    }

    pub(crate) fn new(
        vae: TrainVae,
        parameters: &Parameters,
        config: &VaeConfig,
        device: Device,
        kind: Kind,
    ) -> Self {
        let constant = |values: &[f64]| {
            Tensor::from_slice(values).to_kind(Kind::Float).to_device(device).view([1, -1, 1, 1, 1])
        };
        let weights = no_grad(|| parameters.averaged(kind));
        let (mean, std) = (constant(&config.latent_mean), constant(&config.latent_std));
        Self { vae, weights, renderer: BatchRenderer::new(device), mean, std, kind }
    }

    pub fn device(&self) -> Device {
        self.mean.device()
    }

    /// Channels of a latent.
    pub fn channels(&self) -> i64 {
        self.mean.size()[1]
    }

    /// Clips of [`FRAMES`] frames.
    pub fn encode(&self, clips: &[Vec<Frame>]) -> Encoded {
        let parts: Vec<[Tensor; 3]> = clips
            .chunks(CLIPS)
            .map(|clips| {
                let frames: Vec<Frame> = clips.iter().flatten().copied().collect();
                let pixels = no_grad(|| self.renderer.draw(&frames));
                let size = pixels.size();
                let pixels = pixels.view([clips.len() as i64, FRAMES as i64, 3, size[2], size[3]]);
                let pixels = pixels.transpose(1, 2).to_kind(self.kind).contiguous();
                let head = pixels.narrow(2, HEAD_FRAME as i64, 1);
                let objects = self.objects(&frames, clips.len() as i64);
                [self.encode_pixels(&pixels), self.encode_pixels(&head), objects]
            })
            .collect();
        let [latents, heads, objects] = std::array::from_fn(|which| {
            let parts: Vec<&Tensor> = parts.iter().map(|part| &part[which]).collect();
            Tensor::cat(&parts, 0)
        });
        Encoded { latents, heads, objects }
    }

    /// Objects of `clips` clips on the grid of the latents: `[B, 9, 1, h, w]`.
    fn objects(&self, frames: &[Frame], clips: i64) -> Tensor {
        no_grad(|| {
            let pixels = self.renderer.objects(frames);
            // [B, F, h, w]; a cell sees itself and its neighbours.
            let cells = pixels.max_pool2d([24, 24], [8, 8], [8, 8], [1, 1], false);
            let cells = cells.view([clips, FRAMES as i64, cells.size()[2], cells.size()[3]]).ceil();
            let size = cells.size();
            let groups = cells.narrow(1, 1, size[1] - 1).view([clips, -1, 4, size[2], size[3]]);
            let groups = groups.amax([2].as_slice(), false);
            Tensor::cat(&[cells.narrow(1, 0, 1), groups], 1).unsqueeze(2).to_kind(self.kind)
        })
    }

    /// Clips of any one length, at once: `[B, f, z, h, w]`.
    pub fn encode_frames(&self, clips: &[Vec<Frame>]) -> Tensor {
        let frames: Vec<Frame> = clips.iter().flatten().copied().collect();
        let pixels = no_grad(|| self.renderer.draw(&frames));
        let size = pixels.size();
        let pixels = pixels.view([clips.len() as i64, -1, 3, size[2], size[3]]);
        self.encode_pixels(&pixels.transpose(1, 2).contiguous())
    }

    /// `[B, 3, F, H, W]` -> normalised `[B, f, z, h, w]`.
    pub fn encode_pixels(&self, pixels: &Tensor) -> Tensor {
        no_grad(|| {
            let (mean, _) = self.vae.encode(&self.weights, &pixels.to_kind(self.kind));
            let z = (mean.to_kind(Kind::Float) - &self.mean) / &self.std;
            z.transpose(1, 2).to_kind(self.kind)
        })
    }

    /// Normalised `[B, f, z, h, w]` -> pixels `[B, 3, F, H, W]` in [-1, 1].
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        no_grad(|| {
            let parts: Vec<Tensor> = latents
                .split(CLIPS as i64, 0)
                .iter()
                .map(|latents| {
                    let z = latents.transpose(1, 2).to_kind(Kind::Float) * &self.std + &self.mean;
                    self.vae.decode(&self.weights, &z.to_kind(self.kind)).clamp(-1.0, 1.0)
                })
                .collect();
            Tensor::cat(&parts, 0)
        })
    }
}

/// A copy on `device` that nobody waits for: a copy out of ordinary memory waits for all that a GPU still has to do.
pub fn upload(tensor: &Tensor, device: Device) -> Tensor {
    if device.is_cuda() {
        let pinned = torch_extra::pinned(tensor).unwrap_or_else(|e| panic!("{e}"));
        pinned.to_device_(device, tensor.kind(), true, false)
    } else {
        tensor.shallow_clone()
    }
}
