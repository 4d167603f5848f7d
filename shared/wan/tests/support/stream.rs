//! Streamed runs of the transformer: the model under test and the inputs of each chunk.

use std::time::{Duration, Instant};

use collectives::Solo;
use serde_json::Value;
use tch::{Kind, Tensor};
use wan::config::{DitConfig, Family, ModelConfig};
use wan::dit::{CausalDit, KvCache, Shard, Tp};
use wan::generator::{ChunkArgs, ChunkOutput, GenerateError, Generator};
use wan::noise::BlockNoise;
use wan::scheduler::FlowScheduler;
use wan::weights::SafetensorsSource;

use super::{Golden, device, json, path, vae};

pub(crate) fn dit_config() -> DitConfig {
    json("causal_dit_config.json")
}

/// The set's transformer, or one shard of it.
pub(crate) fn dit(shard: Shard) -> CausalDit {
    let source = SafetensorsSource::open(path("causal_dit_weights.safetensors")).unwrap();
    CausalDit::load(&dit_config(), &source, shard, device(), Kind::Float).unwrap()
}

/// Runs `work` as the only rank.
pub(crate) fn solo<T>(work: impl FnOnce(&Tp) -> T) -> T {
    work(&Tp { collective: &Solo::new(), deadline: Instant::now() + Duration::from_secs(600) })
}

/// One streamed run: where its inputs and its results are, and what its files say of how it was made.
pub(crate) struct Run {
    pub(crate) inputs: Golden,
    pub(crate) results: Golden,
    pub(crate) config: ModelConfig,
    pub(crate) bias: f64,
    /// Denoising steps as the run states them, before any warping.
    stated_steps: Vec<f64>,
    /// The timestep of each denoising step.
    pub(crate) timesteps: Vec<f64>,
    /// `[F, C, H, W]` of a chunk's latents.
    shape: [i64; 4],
}

impl Run {
    pub(crate) fn krea(inputs: &str, results: &str) -> Self {
        Self::open(inputs, results, |_| Family::Krea)
    }

    pub(crate) fn self_forcing(inputs: &str, results: &str) -> Self {
        Self::open(inputs, results, |stated| {
            let sink_size = stated("sink_size").and_then(|v| v.as_i64()).expect("a sink_size in the run");
            Family::SelfForcing { sink_size }
        })
    }

    fn open(
        inputs: &str,
        results: &str,
        family: impl FnOnce(&dyn Fn(&str) -> Option<Value>) -> Family,
    ) -> Self {
        let (inputs, results) = (Golden::open(inputs), Golden::open(results));
        let stated = |key: &str| results.run(key).or_else(|| inputs.run(key));
        let number = |key: &str| stated(key).and_then(|v| v.as_f64());
        let integer = |key: &str| stated(key).and_then(|v| v.as_i64());
        let family = family(&stated);
        let config = ModelConfig {
            family,
            dit: dit_config(),
            shift: number("timestep_shift").expect("a timestep_shift in the run"),
            num_frame_per_block: integer("num_frame_per_block").expect("a num_frame_per_block in the run"),
            kv_cache_num_frames: if family.recomputes() {
                integer("kv_cache_num_frames").expect("a kv_cache_num_frames in the run")
            } else {
                0
            },
            local_attn_size: integer("local_attn_size").expect("a local_attn_size in the run"),
            ..ModelConfig::named("tiny").unwrap()
        };
        let steps = stated("denoising_steps").expect("denoising_steps in the run");
        let stated_steps: Vec<f64> = serde_json::from_value(steps).unwrap();
        let scheduler = FlowScheduler::new(config.shift);
        let timestep = |step: &f64| match family {
            Family::Krea => *step,
            Family::SelfForcing { .. } => scheduler.warp(whole(*step)).unwrap().into(),
        };
        let timesteps = stated_steps.iter().map(timestep).collect();
        let shape = shape(&config, [&inputs, &results]);
        let bias = number("kv_cache_attention_bias").unwrap_or(1.0);
        assert!(family.recomputes() || bias == 1.0, "only the Krea runs have an attention bias");
        Self { inputs, results, config, bias, stated_steps, timesteps, shape }
    }

    /// Steps as a user states them.
    pub(crate) fn steps(&self) -> Vec<u32> {
        self.stated_steps.iter().copied().map(whole).collect()
    }

    pub(crate) fn tokens_per_frame(&self) -> i64 {
        self.config.dit.tokens_per_frame(self.shape[2], self.shape[3])
    }

    /// All chunks up to the last one that the results know of: a stream cannot skip one.
    pub(crate) fn chunks(&self) -> std::ops::RangeInclusive<usize> {
        let chunk = |key: &str| key.strip_prefix("chunk")?.split_once('.')?.0.parse::<usize>().ok();
        0..=self.results.names().filter_map(chunk).max().expect("results of a chunk")
    }

    /// The inputs of chunk `index`; `made` are the latents that the code under test gave for the chunks before.
    pub(crate) fn chunk(&self, index: usize, made: &[Tensor]) -> Chunk<'_> {
        let key = |name: &str| format!("chunk{index}.{name}");
        let start = self.config.num_frame_per_block * index as i64;
        self.inputs.check_integer(&key("current_start_frame"), start);
        let (noise, renoise) = self.noise(index, start);
        let context =
            (index > 0 && self.config.family.recomputes()).then(|| self.context(index, start, made));
        Chunk {
            run: self,
            index,
            current_start_frame: start,
            prompt: self.prompt(index),
            noise,
            renoise,
            context,
        }
    }

    pub(crate) fn base_seed(&self) -> u64 {
        self.inputs.run_integer("base_seed").try_into().unwrap()
    }

    /// A prompt holds until the next one is given.
    fn prompt(&self, index: usize) -> Tensor {
        let given = (1..=index).rev().find_map(|c| self.inputs.find(&format!("chunk{c}.prompt_embeds")));
        given.unwrap_or_else(|| self.inputs.get("chunk0.prompt_embeds"))
    }

    /// Initial noise and that between the steps. A Krea run draws it from its seed, with the same numbers as here.
    fn noise(&self, index: usize, start: i64) -> (Tensor, Vec<Tensor>) {
        let noise_key = format!("chunk{index}.noise");
        let renoise_key = |step: usize| format!("chunk{index}.step{step}.renoise");
        let steps = self.timesteps.len();
        if !self.config.family.recomputes() {
            let renoise = (0..steps - 1).map(|step| self.inputs.get(&renoise_key(step)));
            return (self.inputs.get(&noise_key), renoise.collect());
        }
        let seed = self.base_seed();
        self.inputs.check_integer(&format!("chunk{index}.block_seed"), seed as i64 + start);
        let drawn = BlockNoise::draw(seed, start, self.shape, steps).unwrap();
        let own = |key: &str, drawn: &Tensor| {
            let drawn = drawn.reshape(with_batch(self.shape)).to_device(device());
            self.inputs.check_within(key, &drawn, 1e-6);
            self.inputs.find(key).unwrap_or(drawn)
        };
        let renoise = drawn.renoise.iter().enumerate().map(|(step, noise)| own(&renoise_key(step), noise));
        (own(&noise_key, &drawn.initial), renoise.collect())
    }

    /// The result of a chunk, as far as the set tells: also the clean prediction of its last step.
    fn latents(&self, index: usize) -> Option<Tensor> {
        self.latents_keys(index).iter().find_map(|key| self.results.find(key))
    }

    fn latents_keys(&self, index: usize) -> [String; 2] {
        let last = self.timesteps.len() - 1;
        [format!("chunk{index}.latents"), format!("chunk{index}.step{last}.x0_pred")]
    }

    /// What the cache is rebuilt from before chunk `index`: a head frame and the last latents of this very run. The head
    /// is the first latent of the stream until the window slides, then a decoded frame that is encoded again.
    fn context(&self, index: usize, start: i64, made: &[Tensor]) -> Tensor {
        let config = &self.config;
        let latents = |c: usize| self.latents(c).unwrap_or_else(|| made[c].shallow_clone());
        let history: Vec<Tensor> = (0..index).map(latents).collect();
        let head = if start - config.num_frame_per_block < config.kv_cache_num_frames {
            history[0].narrow(1, 0, 1)
        } else {
            self.reencoded(index, start, &history)
        };
        // The reference keeps the last latents in a buffer that starts with zeros.
        let kept = config.kv_cache_num_frames - 1;
        let [_, channels, height, width] = self.shape;
        let mut buffer = vec![Tensor::zeros([1, kept, channels, height, width], (Kind::Float, device()))];
        buffer.extend(history);
        let buffer = Tensor::cat(&buffer, 1);
        Tensor::cat(&[head, buffer.narrow(1, buffer.size()[1] - kept, kept)], 1)
    }

    /// The set feeds a frame of its own here; where it does not, the stream's oldest frame in the window is encoded.
    fn reencoded(&self, index: usize, start: i64, history: &[Tensor]) -> Tensor {
        let key = |name: &str| format!("chunk{index}.{name}");
        // A run's own context says what it was fed; where the results have none, it was fed what the inputs' run was.
        let context =
            [&self.results, &self.inputs].into_iter().find_map(|file| file.find(&key("context_frames")));
        let given = self.inputs.find(&key("reencoded_first_frame"));
        let given = given.or_else(|| Some(context?.narrow(1, 0, 1)));
        given.unwrap_or_else(|| {
            let factor = vae::config().temporal_factor();
            let span = 1 + (self.config.kv_cache_num_frames - 1) * factor;
            vae::reencode(history, 1 + (start - 1) * factor - span)
        })
    }

    /// Compares the latents that a chunk came to.
    pub(crate) fn check_latents(&self, index: usize, latents: &Tensor) {
        for key in self.latents_keys(index) {
            self.results.check(&key, latents);
        }
    }

    /// Compares indices and contents of the cache after a chunk, and what follows from them: where the chunk began.
    pub(crate) fn check_cache(&self, index: usize, cache: &KvCache) {
        let key = |name: &str| format!("chunk{index}.{name}");
        let per_frame = self.tokens_per_frame();
        let start = cache.global_end() - self.config.num_frame_per_block * per_frame;
        self.results.check_integer(&key("kv.global_end_index"), cache.global_end());
        self.results.check_integer(&key("kv.local_end_index"), cache.local_end());
        self.results.check_integer(&key("current_start_tokens"), start);
        self.results.check_integer(&key("start_frame"), start / per_frame);
        let layers = self.config.dit.num_layers;
        for layer in 0..layers {
            let (k, v) = cache.held(layer as usize).unwrap();
            let last = (layer == layers - 1).then(|| "layer_last".to_owned());
            for name in [format!("layer{layer}")].into_iter().chain(last) {
                self.results.check(&key(&format!("kv.{name}.k")), &k);
                self.results.check(&key(&format!("kv.{name}.v")), &v);
            }
        }
    }

    /// Compares the forwards that a chunk made, and those of the run so far.
    pub(crate) fn check_calls(&self, index: usize, calls: i64, total: i64) {
        self.results.check_integer(&format!("chunk{index}.generator_calls"), calls);
        self.results.check_integer(&format!("chunk{index}.generator_calls_total"), total);
    }
}

/// A step as the product takes it.
fn whole(step: f64) -> u32 {
    assert!(
        step.fract() == 0.0 && (0.0..=1000.0).contains(&step),
        "step {step} is not a whole number to 1000"
    );
    step as u32
}

/// `[F, C, H, W]` of a chunk: that of any of its latents, whose sizes all agree.
fn shape(config: &ModelConfig, files: [&Golden; 2]) -> [i64; 4] {
    let (frames, channels) = (config.num_frame_per_block, config.dit.in_dim);
    let of_chunk = |tensor: &Tensor| match tensor.size()[..] {
        [1, f, c, height, width] if (f, c) == (frames, channels) => Some([frames, channels, height, width]),
        _ => None,
    };
    let found = files.into_iter().flat_map(Golden::iter).find_map(|(_, tensor)| of_chunk(tensor));
    found.unwrap_or_else(|| panic!("no latents of [1, {frames}, {channels}, H, W] in the run"))
}

fn with_batch([frames, channels, height, width]: [i64; 4]) -> [i64; 5] {
    [1, frames, channels, height, width]
}

/// The inputs of one chunk.
pub(crate) struct Chunk<'a> {
    run: &'a Run,
    pub(crate) index: usize,
    pub(crate) current_start_frame: i64,
    pub(crate) prompt: Tensor,
    pub(crate) noise: Tensor,
    pub(crate) renoise: Vec<Tensor>,
    pub(crate) context: Option<Tensor>,
}

impl Chunk<'_> {
    /// Whether the prompt is another one than the chunk before had.
    pub(crate) fn prompt_changed(&self) -> bool {
        self.index == 0 || !self.run.prompt(self.index - 1).equal(&self.prompt)
    }

    /// Has the generator make this chunk; the prompt travels only when it is new, or when the slot holds none.
    pub(crate) fn generate(&self, generator: &mut Generator, tp: &Tp) -> Result<ChunkOutput, GenerateError> {
        let (steps, recomputes) = (self.run.steps(), self.run.config.family.recomputes());
        let fresh = generator.kv_cache(0).is_none();
        let args = ChunkArgs {
            current_start_frame: self.current_start_frame,
            latents_in: &self.noise,
            conditioning: (fresh || self.prompt_changed()).then_some(&self.prompt),
            context_frames: self.context.as_ref(),
            denoising_steps: &steps,
            base_seed: if recomputes { self.run.base_seed() } else { 0 },
            kv_cache_attention_bias: self.run.bias,
            init_cache: fresh,
            reset_kv_cache: false,
            reset_crossattn_cache: self.prompt_changed(),
        };
        // Self-Forcing's own noise does not come from a seed for each block.
        if recomputes {
            generator.generate(0, &args, tp)
        } else {
            generator.generate_with_noise(0, &args, &self.renoise, tp)
        }
    }
}
