//! The trained model as it is served: everything here is `wan`, in the order of stage 0's chunk loop.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use collectives::Solo;
use demo_world::SIDE;
use tch::{Device, Kind, Tensor};
use wan::config::ModelConfig;
use wan::dit::{CausalDit, Shard, Tp};
use wan::generator::{ChunkArgs, Generator};
use wan::noise::block_noise;
use wan::text::{TextEncoder, TokenizerSource};
use wan::vae::{DecoderStream, Vae};
use wan::weights::{Component, Weights};

use crate::look::bytes;
use crate::stage_vae::read_config;

/// How long a chunk may take.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub struct Served {
    config: ModelConfig,
    text: TextEncoder,
    generator: Generator,
    vae: Vae,
}

impl Served {
    /// Loads a model folder.
    ///
    /// # Errors
    /// A file is missing, or is of another model.
    pub fn load(folder: &Path, device: Device) -> Result<Self> {
        let config = read_config(&folder.join("config.json"))?;
        let weights = Weights::Checkpoint { path: folder.to_owned() };
        let kind = Kind::Float;
        let source = weights.open(Component::Text, device)?;
        let tokenizer = TokenizerSource::File(folder.join("tokenizer.json"));
        let text = TextEncoder::load(&config.text, source.as_ref(), tokenizer, device, kind)?;
        let source = weights.open(Component::Dit, device)?;
        let dit = CausalDit::load(&config.dit, source.as_ref(), Shard::WHOLE, device, kind)?;
        let source = weights.open(Component::Vae, device)?;
        let vae = Vae::load(&config.vae, source.as_ref(), device, kind)?;
        let generator = Generator::new(&config, dit, 1);
        Ok(Self { config, text, generator, vae })
    }

    /// Streams one chunk for each prompt, a change where it differs from the one before: RGB frames, 9 of the first chunk
    /// and 12 of every other. The first chunk may be given, as RGB frames that are encoded.
    ///
    /// # Errors
    /// A prompt cannot be encoded, or a chunk not be made.
    pub fn stream(&mut self, prompts: &[&str], given: Option<&[Vec<u8>]>, seed: u64) -> Result<Vec<Vec<u8>>> {
        self.generator.clear_slot(0);
        let (height, width) = self.config.sizes[0];
        let (rows, columns) = self.config.latent_size(height, width);
        let count = self.config.num_frame_per_block;
        let (mut decoder, mut frames) = (DecoderStream::new(), Vec::new());
        let mut before: Option<(&str, Tensor, Tensor)> = None;
        for (chunk, prompt) in (0_i64..).zip(prompts) {
            let start = chunk * count;
            let noise = block_noise(seed, start, count, self.config.dit.in_dim, rows, columns)?;
            let changed = before.as_ref().is_none_or(|(before, _, _)| before != prompt);
            let conditioning = if changed { Some(self.text.encode(prompt)?) } else { None };
            let context = before.as_ref().map(|(_, head, latents)| {
                Tensor::cat(&[head.shallow_clone(), latents.narrow(1, count - 2, 2)], 1)
            });
            let args = ChunkArgs {
                current_start_frame: start,
                latents_in: &noise,
                conditioning: conditioning.as_ref(),
                context_frames: context.as_ref(),
                denoising_steps: &self.config.default_steps.clone(),
                base_seed: seed,
                kv_cache_attention_bias: self.config.default_bias,
                init_cache: chunk == 0,
                reset_kv_cache: false,
                reset_crossattn_cache: false,
            };
            let solo = Solo::new();
            let tp = Tp { collective: &solo, deadline: Instant::now() + PATIENCE };
            let made =
                self.generator.generate(0, &args, &tp).map_err(|e| anyhow!("chunk {chunk}: {e}"))?.latents;
            let latents = match given.filter(|_| chunk == 0) {
                Some(given) => self.vae.encode_clip(&pixels_of(given).unsqueeze(0)),
                None => made,
            };
            // [1, F, 3, H, W]
            let pixels = self.vae.decode(&mut decoder, &latents);
            let head = if chunk == 0 {
                latents.narrow(1, 0, 1)
            } else {
                self.vae.encode_frame(&pixels.narrow(1, 3, 1).transpose(1, 2))
            };
            frames.extend(bytes(&pixels.get(0).transpose(0, 1))?);
            before = Some((prompt, head, latents));
        }
        Ok(frames)
    }
}

/// RGB frames as a clip `[3, F, S, S]` in [-1, 1].
pub fn pixels_of(frames: &[Vec<u8>]) -> Tensor {
    let side = SIDE as i64;
    let clip = Tensor::from_slice(&frames.concat()).view([frames.len() as i64, side, side, 3]);
    clip.permute([3, 0, 1, 2]).to_kind(Kind::Float) / 127.5 - 1.0
}
