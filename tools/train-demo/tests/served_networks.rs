//! What is trained here is what `wan` serves: exported weights give the same numbers in both.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::path::Path;
use std::time::{Duration, Instant};

use collectives::Solo;
use tch::{Device, Kind, Tensor};
use train_demo::conditional::Conditional;
use train_demo::parameters::{Layout, Parameters};
use train_demo::tokens::{self, Captions};
use train_demo::vae::TrainVae;
use train_demo::{dit, text};
use wan::config::ModelConfig;
use wan::dit::{Attend, CausalDit, KvCacheSpec, Shard, Tp};
use wan::rope::Rope;
use wan::text::{TextEncoder, TokenizerSource};
use wan::vae::Vae;
use wan::weights::{Component, Weights};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// The model that ships, with fewer layers.
fn config() -> ModelConfig {
    let mut config = ModelConfig::named("demo").unwrap();
    config.dit.num_layers = 2;
    config.text.num_layers = 2;
    config
}

/// Fresh parameters, none of them where it starts.
fn parameters(layout: Layout) -> Parameters {
    tch::manual_seed(3);
    let mut parameters = Parameters::new(layout, Device::Cpu);
    tch::no_grad(|| {
        let noise = parameters.average.randn_like() * 0.02;
        // As f16 stores them.
        parameters.average = (&parameters.average + noise).to_kind(Kind::Half).to_kind(Kind::Float);
    });
    parameters
}

fn close(a: &Tensor, b: &Tensor, what: &str) {
    assert_eq!(a.size(), b.size(), "{what}");
    let off = f64::try_from((a - b).abs().max()).unwrap();
    let scale = f64::try_from(b.abs().max()).unwrap();
    assert!(off < 2e-4 * scale.max(1.0), "{what}: {off} of {scale}");
}

fn open(folder: &Path, component: Component) -> Box<dyn wan::weights::TensorSource> {
    Weights::Checkpoint { path: folder.to_owned() }.open(component, Device::Cpu).unwrap()
}

#[test]
fn the_vae_is_the_served_one() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        ModelConfig { vae: wan::config::VaeConfig { latent_std: vec![2.0; 16], ..config().vae }, ..config() };
    let mut layout = Layout::default();
    let vae = TrainVae::new(&config.vae, &mut layout);
    let parameters = parameters(layout);
    parameters.export("", &folder.path().join("vae.safetensors")).unwrap();
    let served =
        Vae::load(&config.vae, open(folder.path(), Component::Vae).as_ref(), Device::Cpu, Kind::Float)
            .unwrap();
    let _guard = tch::no_grad_guard();
    let w = parameters.averaged(Kind::Float);
    let mean = Tensor::from_slice(&config.vae.latent_mean).to_kind(Kind::Float).view([1, -1, 1, 1, 1]);
    let std = Tensor::from_slice(&config.vae.latent_std).to_kind(Kind::Float).view([1, -1, 1, 1, 1]);

    let pixels = Tensor::rand([1, 3, 13, 32, 48], CPU) * 2.0 - 1.0;
    let encoded = served.encode_clip(&pixels);
    close(&((vae.encode(&w, &pixels).0 - &mean) / &std).transpose(1, 2), &encoded, "encode");

    let latents = Tensor::randn([1, 4, 16, 4, 6], CPU);
    let decoded = vae.decode(&w, &(latents.transpose(1, 2) * &std + &mean)).transpose(1, 2).clamp(-1.0, 1.0);
    close(&decoded, &served.decode_clip(&latents), "decode");
}

#[test]
fn text_and_transformer_are_the_served_ones() {
    let folder = tempfile::tempdir().unwrap();
    let config = config();
    let mut layout = Layout::default();
    let model = Conditional::new(&config, &mut layout, Device::Cpu);
    let parameters = parameters(layout);
    parameters.export(dit::PREFIX, &folder.path().join("dit.safetensors")).unwrap();
    parameters.export(text::PREFIX, &folder.path().join("text.safetensors")).unwrap();
    let tokenizer = folder.path().join("tokenizer.json");
    tokens::train(1, 512, &tokenizer).unwrap();
    let _guard = tch::no_grad_guard();
    let w = parameters.averaged(Kind::Float);

    let prompts = ["a small red star, spinning on a dark blue sky", "a green circle"].map(str::to_owned);
    let ids = Captions::open(&tokenizer, config.text.text_len).unwrap().batch(&prompts).unwrap();
    let embedded = model.text.forward(&w, &ids);
    let source = open(folder.path(), Component::Text);
    let encoder = TextEncoder::load(
        &config.text,
        source.as_ref(),
        TokenizerSource::File(tokenizer),
        Device::Cpu,
        Kind::Float,
    )
    .unwrap();
    let served: Vec<Tensor> = prompts.iter().map(|prompt| encoder.encode(prompt).unwrap()).collect();
    close(&embedded, &Tensor::cat(&served, 0), "text");

    let collective = Solo::new();
    let tp = Tp { collective: &collective, deadline: Instant::now() + Duration::from_secs(60) };
    let source = open(folder.path(), Component::Dit);
    let mut served_dit =
        CausalDit::load(&config.dit, source.as_ref(), Shard::WHOLE, Device::Cpu, Kind::Float).unwrap();
    let latents = |n| Tensor::randn([2, n, 16, 8, 8], CPU);
    let (chunk, context) = (latents(3), latents(3));
    let timesteps = Tensor::from_slice(&[750.0, 1000.0]);
    let mut rope = Rope::new(config.dit.head_dim(), Device::Cpu);
    for context in [None, Some(&context)] {
        let flow = model.dit.flow(&w, &mut rope, &chunk, &timesteps, context, &model.dit.text(&w, &embedded));
        for row in 0..2 {
            let spec = KvCacheSpec { capacity: 96, sink: 0, max_attention: 96, evicts: false };
            let mut cache = served_dit.new_cache(spec).unwrap();
            let text = served_dit.text_cache(&served[row as usize], &tp).unwrap();
            let one = |x: &Tensor| x.narrow(0, row, 1);
            if let Some(context) = context {
                let attend = Attend::Recompute { block_frames: 3 };
                let _ = served_dit.forward(&one(context), &[0.0; 3], attend, &mut cache, &text, &tp).unwrap();
            }
            let start_frame = if context.is_some() { 3 } else { 0 };
            let attend = Attend::Cached { start_frame, bias: 1.0, block_frames: 3 };
            let timestep = timesteps.double_value(&[row]);
            let expected =
                served_dit.forward(&one(&chunk), &[timestep; 3], attend, &mut cache, &text, &tp).unwrap();
            close(&one(&flow), &expected, &format!("flow {row}, context {}", context.is_some()));
        }
    }
}
