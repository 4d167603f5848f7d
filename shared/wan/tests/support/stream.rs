//! Streamed runs of the transformer: the model under test and the inputs of each chunk.

use std::time::{Duration, Instant};

use collectives::Solo;
use tch::{Kind, Tensor};
use wan::config::{DitConfig, Family, ModelConfig};
use wan::dit::{CausalDit, Shard, Tp};
use wan::generator::{ChunkArgs, ChunkOutput, GenerateError, Generator};
use wan::weights::SafetensorsSource;

use super::{Golden, json, path};

pub(crate) fn dit_config() -> DitConfig {
    json("causal_dit_config.json")
}

/// The set's transformer, or one shard of it.
pub(crate) fn dit(shard: Shard) -> CausalDit {
    let source = SafetensorsSource::open(path("causal_dit_weights.safetensors")).unwrap();
    CausalDit::load(&dit_config(), &source, shard, super::device(), Kind::Float).unwrap()
}

/// Runs `work` as the only rank.
pub(crate) fn solo<T>(work: impl FnOnce(&Tp) -> T) -> T {
    work(&Tp { collective: &Solo::new(), deadline: Instant::now() + Duration::from_secs(600) })
}

/// One streamed run: where its inputs and its results are, and how it was made.
pub(crate) struct Run {
    pub(crate) inputs: Golden,
    pub(crate) results: Golden,
    pub(crate) family: Family,
    pub(crate) bias: f64,
}

impl Run {
    pub(crate) fn krea(inputs: &str, results: &str, bias: f64) -> Self {
        let (inputs, results) = (Golden::open(inputs), Golden::open(results));
        let stated = inputs.run("kv_cache_attention_bias").and_then(|b| b.as_f64());
        assert_eq!(stated.unwrap_or(bias), bias, "the run was made with another bias");
        Self { inputs, results, family: Family::Krea, bias }
    }

    pub(crate) fn self_forcing(inputs: &str, results: &str, sink_size: i64) -> Self {
        let (inputs, results) = (Golden::open(inputs), Golden::open(results));
        let stated = results.run("sink_size").and_then(|s| s.as_i64());
        assert_eq!(stated.unwrap_or(sink_size), sink_size, "the run was made with another sink");
        Self { inputs, results, family: Family::SelfForcing { sink_size }, bias: 1.0 }
    }

    fn integer(&self, key: &str, default: i64) -> i64 {
        self.inputs.run(key).and_then(|v| v.as_i64()).unwrap_or(default)
    }

    /// The model config that the run stands for.
    pub(crate) fn config(&self) -> ModelConfig {
        ModelConfig {
            family: self.family,
            dit: dit_config(),
            shift: self.inputs.run("timestep_shift").and_then(|v| v.as_f64()).unwrap_or(5.0),
            num_frame_per_block: self.integer("num_frame_per_block", 3),
            kv_cache_num_frames: self.integer("kv_cache_num_frames", 3),
            local_attn_size: self.integer("local_attn_size", 6),
            ..ModelConfig::named("tiny").unwrap()
        }
    }

    /// Steps as a user states them.
    pub(crate) fn steps(&self) -> Vec<u32> {
        let stated = self.inputs.run("denoising_steps").map(|v| serde_json::from_value(v).unwrap());
        stated.unwrap_or_else(|| vec![1000, 750, 500, 250])
    }

    pub(crate) fn base_seed(&self) -> u64 {
        self.integer("base_seed", 42).try_into().unwrap()
    }

    pub(crate) fn chunks(&self) -> Vec<usize> {
        let chunks = self.results.numbered("chunk", ".latents");
        assert!(!chunks.is_empty());
        chunks
    }

    pub(crate) fn chunk<'a>(&'a self, index: usize) -> Chunk<'a> {
        let input = |key: &str| self.inputs.find(&format!("chunk{index}.{key}"));
        let steps = self.inputs.numbered(&format!("chunk{index}.step"), ".renoise");
        let frames = self.integer("num_frame_per_block", 3);
        Chunk {
            run: self,
            index,
            current_start_frame: self
                .inputs
                .integer(&format!("chunk{index}.current_start_frame"))
                .unwrap_or(frames * index as i64),
            prompt: input("prompt_embeds").unwrap(),
            noise: input("noise").unwrap(),
            renoise: steps.iter().map(|s| input(&format!("step{s}.renoise")).unwrap()).collect(),
            context: input("context_frames").map(|_| self.context(index)),
        }
    }

    /// What the cache is rebuilt from before chunk `index`: a head frame and the last latents of this very run. The head
    /// is the first latent of the stream until the window slides, then the re-encoded frame of the set.
    fn context(&self, index: usize) -> Tensor {
        let latents = |chunk: usize| self.results.get(&format!("chunk{chunk}.latents"));
        let reencoded = self.inputs.find(&format!("chunk{index}.reencoded_first_frame"));
        let head = reencoded.unwrap_or_else(|| latents(0).narrow(1, 0, 1));
        let tail = self.integer("kv_cache_num_frames", 3) - 1;
        let last = latents(index - 1);
        Tensor::cat(&[&head, &last.narrow(1, last.size()[1] - tail, tail)], 1)
    }
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
        self.index == 0 || !self.run.chunk(self.index - 1).prompt.equal(&self.prompt)
    }

    /// Has the generator make this chunk; the prompt travels only when it is new.
    pub(crate) fn generate(&self, generator: &mut Generator, tp: &Tp) -> Result<ChunkOutput, GenerateError> {
        let steps = self.run.steps();
        let args = ChunkArgs {
            current_start_frame: self.current_start_frame,
            latents_in: &self.noise,
            conditioning: self.prompt_changed().then_some(&self.prompt),
            context_frames: self.context.as_ref(),
            denoising_steps: &steps,
            base_seed: self.run.base_seed(),
            kv_cache_attention_bias: self.run.bias,
            init_cache: self.index == 0,
            reset_kv_cache: false,
            reset_crossattn_cache: self.prompt_changed(),
        };
        // Self-Forcing's own noise does not come from a seed for each block.
        match self.run.family {
            Family::Krea => generator.generate(0, &args, tp),
            Family::SelfForcing { .. } => generator.generate_with_noise(0, &args, &self.renoise, tp),
        }
    }
}
