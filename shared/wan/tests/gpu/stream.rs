//! A stream of chunks from a seed: the same inputs whatever computes them.

use std::time::{Duration, Instant};

use collectives::{Collective, Solo};
use tch::{Device, Kind, Tensor};
use wan::config::{Family, ModelConfig};
use wan::dit::{CausalDit, Shard, Tp};
use wan::generator::{ChunkArgs, GenerateError, Generator};
use wan::noise::block_noise;
use wan::weights::SyntheticSource;

pub(crate) struct Made {
    pub(crate) model: &'static str,
    /// Another one than the model's own.
    pub(crate) family: Option<Family>,
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
        let mut stream = self.stream();
        (0..chunks).map(|_| stream.chunk(collective, Change::default())).collect()
    }

    pub(crate) fn stream(&self) -> Stream {
        let config = ModelConfig::named(self.model).unwrap();
        let config = ModelConfig { family: self.family.unwrap_or(config.family), ..config };
        let source = SyntheticSource::new(42).on(self.device);
        let dit = CausalDit::load(&config.dit, &source, self.shard, self.device, self.kind).unwrap();
        let generator = Generator::new(&config, dit, 1);
        Stream {
            generator,
            latent_size: config.latent_size(self.size.0, self.size.1),
            config,
            start: 0,
            last: None,
        }
    }
}

/// What a chunk has that the others have not.
#[derive(Clone, Copy, Default)]
pub(crate) struct Change {
    /// Seed of a new prompt.
    pub(crate) prompt: Option<u64>,
    pub(crate) bias: Option<f64>,
    pub(crate) reset_kv_cache: bool,
}

/// One stream under way.
pub(crate) struct Stream {
    pub(crate) generator: Generator,
    config: ModelConfig,
    latent_size: (i64, i64),
    start: i64,
    last: Option<Tensor>,
}

impl Stream {
    /// Begins again, with nothing in the cache.
    pub(crate) fn restart(&mut self) {
        self.generator.clear_slot(0);
        (self.start, self.last) = (0, None);
    }

    /// Latents of the next chunk.
    pub(crate) fn chunk(&mut self, collective: &dyn Collective, change: Change) -> Tensor {
        self.try_chunk(collective, change, Duration::from_secs(120)).unwrap()
    }

    pub(crate) fn try_chunk(
        &mut self,
        collective: &dyn Collective,
        change: Change,
        within: Duration,
    ) -> Result<Tensor, GenerateError> {
        let (config, (h, w), first) = (&self.config, self.latent_size, self.start == 0);
        let noise = block_noise(7, self.start, config.num_frame_per_block, config.dit.in_dim, h, w).unwrap();
        let text = (config.dit.text_len, config.dit.text_dim);
        let prompt = |seed| block_noise(seed, 0, 1, 1, text.0, text.1).unwrap().view([1, text.0, text.1]);
        let prompt = change.prompt.or(first.then_some(8)).map(prompt);
        let args = ChunkArgs {
            current_start_frame: self.start,
            latents_in: &noise,
            conditioning: prompt.as_ref(),
            context_frames: self.last.as_ref().filter(|_| config.family.recomputes()),
            denoising_steps: &config.default_steps,
            base_seed: 7,
            // A stream that rolls on has none.
            kv_cache_attention_bias: match (change.bias, config.family.recomputes()) {
                (Some(bias), _) => bias,
                (None, true) => config.default_bias,
                (None, false) => 1.0,
            },
            init_cache: first,
            reset_kv_cache: change.reset_kv_cache,
            reset_crossattn_cache: false,
        };
        let tp = Tp { collective, deadline: Instant::now() + within };
        let output = self.generator.generate(0, &args, &tp)?;
        let steps = config.default_steps.len();
        let expected = Generator::expected_calls(config, steps, args.context_frames.is_some());
        assert_eq!(output.generator_calls.read().unwrap(), u64::from(expected));
        self.start = output.current_start_frame;
        self.last = Some(output.latents.shallow_clone());
        Ok(output.latents)
    }
}
