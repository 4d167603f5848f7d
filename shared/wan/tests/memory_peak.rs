//! The estimates of `wan::memory` for what a pass works in, against the most that a process had resident.
//!
//! Each test is a process of its own under nextest; elsewhere they take turns.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use collectives::Solo;
use tch::{Device, Kind, Tensor};
use wan::config::{Family, ModelConfig};
use wan::dit::{CausalDit, Shard, Tp};
use wan::generator::{ChunkArgs, Generator};
use wan::memory;
use wan::text::Umt5;
use wan::vae::{DecoderStream, Vae};
use wan::weights::SyntheticSource;

static ALONE: Mutex<()> = Mutex::new(());
const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

fn status(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// Bytes that were resident during `work` beyond those before it.
fn peak<T>(work: impl FnOnce() -> T) -> u64 {
    // Tensors as large as those of a real model are given back when they are freed; here all are, and what was freed
    // before is not taken again without being seen.
    // SAFETY: neither has preconditions.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 16);
        libc::malloc_trim(0);
    }
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS:");
    let _kept = work();
    status("VmHWM:") - before
}

/// Neither too little, nor so much that a device is refused for nothing.
fn assert_estimated(what: &str, said: u64, found: u64) {
    eprintln!("{what}: said {} MiB, found {} MiB", said >> 20, found >> 20);
    assert!(found <= said, "{what}: {found} bytes, {said} were said");
    assert!(said <= 3 * found, "{what}: {found} bytes, and {said} were said");
}

#[test]
fn decoding_works_in_what_was_said() {
    let _alone = ALONE.lock().unwrap();
    let (model, size) = (ModelConfig::named("tiny").unwrap(), (224_u32, 384_u32));
    let config = wan::config::VaeConfig { dim: 16, ..model.vae };
    let vae = Vae::load(&config, &SyntheticSource::new(1), Device::Cpu, Kind::Float).unwrap();
    let mut stream = DecoderStream::new();
    let latents = |rows, columns| Tensor::zeros([1, 1, config.z_dim, rows, columns], CPU);
    // What the library keeps for itself belongs to the process.
    let _ = vae.decode_clip(&latents(4, 6).expand([1, 2, -1, -1, -1], false));
    let latents = latents(28, 48);
    let found = peak(|| {
        (0..3).for_each(|_| drop(vae.decode(&mut stream, &latents)));
        &stream
    });
    let said =
        memory::decoder_stream(&config, size, Kind::Float) + memory::decoding(&config, size, Kind::Float);
    assert_estimated("decoding", said, found);
}

#[test]
fn a_chunk_works_in_what_was_said() {
    let _alone = ALONE.lock().unwrap();
    let tiny = ModelConfig::named("tiny").unwrap();
    for (family, bias) in [(Family::Krea, 0.3), (Family::SelfForcing { sink_size: 1 }, 1.0)] {
        let mut model = ModelConfig { family, sizes: vec![(224, 384)], ..tiny.clone() };
        (model.dit.num_layers, model.dit.dim) = (2, 512);
        model.dit.ffn_dim = 2048;
        let source = SyntheticSource::new(1);
        let dit = CausalDit::load(&model.dit, &source, Shard::WHOLE, Device::Cpu, Kind::Float).unwrap();
        let mut generator = Generator::new(&model, dit, 1);
        let deadline = Instant::now() + Duration::from_secs(300);
        let solo = Solo::new();
        let tp = Tp { collective: &solo, deadline };
        let prompt = Tensor::ones([1, model.dit.text_len, model.dit.text_dim], CPU);
        let mut stream = |rows, columns| {
            let latents = Tensor::zeros([1, 3, 16, rows, columns], CPU);
            for chunk in 0..3 {
                let args = ChunkArgs {
                    current_start_frame: 3 * chunk,
                    latents_in: &latents,
                    conditioning: Some(&prompt),
                    context_frames: (family.recomputes() && chunk > 0).then_some(&latents),
                    denoising_steps: &[1000],
                    base_seed: 1,
                    kv_cache_attention_bias: bias,
                    init_cache: chunk == 0,
                    reset_kv_cache: false,
                    reset_crossattn_cache: false,
                };
                generator.generate(0, &args, &tp).unwrap();
            }
        };
        // What the library keeps for itself belongs to the process.
        stream(4, 4);
        let found = peak(|| stream(28, 48));
        let (size, kind) = (model.sizes[0], Kind::Float);
        let said = memory::kv_cache(&model, 1, size, kind)
            + memory::text_cache(&model.dit, 1, kind)
            + memory::chunk(&model, 1, size, kind);
        assert_estimated("a chunk", said, found);
    }
}

#[test]
fn encoding_a_prompt_works_in_what_was_said() {
    let _alone = ALONE.lock().unwrap();
    let mut config = ModelConfig::named("tiny").unwrap().text;
    (config.text_len, config.num_heads, config.dim_attn) = (512, 32, 512);
    (config.dim, config.dim_ffn) = (256, 1024);
    let encoder = Umt5::load(&config, &SyntheticSource::new(1), Device::Cpu, Kind::Float).unwrap();
    let ids = Tensor::ones([1, config.text_len], (Kind::Int64, Device::Cpu));
    let found = peak(|| encoder.forward(&ids, &ids));
    assert_estimated("a prompt", memory::encoding(&config, Kind::Float), found);
}
