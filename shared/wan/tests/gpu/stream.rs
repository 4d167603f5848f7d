//! A stream of chunks from a seed: the same inputs whatever computes them.

use std::time::{Duration, Instant};

use collectives::{Collective, Solo};
use tch::{Device, Kind, Tensor};
use wan::config::ModelConfig;
use wan::dit::{CausalDit, Shard, Tp};
use wan::generator::{ChunkArgs, Generator};
use wan::noise::block_noise;
use wan::weights::SyntheticSource;

pub(crate) struct Made {
    pub(crate) model: &'static str,
    /// Pixels.
    pub(crate) size: (u32, u32),
    pub(crate) device: Device,
    pub(crate) kind: Kind,
    pub(crate) shard: Shard,
}

impl Made {
    pub(crate) fn solo(&self, chunks: usize) -> Vec<Tensor> {
        self.chunks(&Solo::new(), chunks)
    }

    /// Latents of each chunk; every chunk but the first recomputes from the one before where the model does.
    pub(crate) fn chunks(&self, collective: &dyn Collective, chunks: usize) -> Vec<Tensor> {
        let config = ModelConfig::named(self.model).unwrap();
        let source = SyntheticSource::new(42).on(self.device);
        let dit = CausalDit::load(&config.dit, &source, self.shard, self.device, self.kind).unwrap();
        let mut generator = Generator::new(&config, dit, 1);
        let (h, w) = config.latent_size(self.size.0, self.size.1);
        let noise =
            |frame| block_noise(7, frame, config.num_frame_per_block, config.dit.in_dim, h, w).unwrap();
        let prompt = block_noise(8, 0, 1, 1, config.dit.text_len, config.dit.text_dim).unwrap();
        let prompt = prompt.view([1, config.dit.text_len, config.dit.text_dim]);
        let mut made: Vec<Tensor> = Vec::new();
        let mut start = 0;
        for chunk in 0..chunks {
            let args = ChunkArgs {
                current_start_frame: start,
                latents_in: &noise(start),
                conditioning: (chunk == 0).then_some(&prompt),
                context_frames: made.last().filter(|_| config.family.recomputes()),
                denoising_steps: &config.default_steps,
                base_seed: 7,
                kv_cache_attention_bias: config.default_bias,
                init_cache: chunk == 0,
                reset_kv_cache: false,
                reset_crossattn_cache: false,
            };
            let tp = Tp { collective, deadline: Instant::now() + Duration::from_secs(120) };
            let output = generator.generate(0, &args, &tp).unwrap();
            start = output.current_start_frame;
            made.push(output.latents);
        }
        made
    }
}
