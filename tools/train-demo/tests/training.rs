//! Training itself, very small, on a CPU: losses fall, and a run that was cut goes on as if it had not been.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use demo_world::clip::{Frame, Mix, SecondObject};
use demo_world::motion::State;
use demo_world::render::{PICTURE, Renderer};
use demo_world::scene::{Scene, Split};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind};
use train_demo::samples::{Sample, World};
use train_demo::scenes::BatchRenderer;
use train_demo::{stage_model, stage_text, stage_vae, tokens};
use wan::config::ModelConfig;

#[derive(Debug, Parser)]
struct Vae {
    #[command(flatten)]
    options: stage_vae::Options,
}

#[derive(Debug, Parser)]
struct Model {
    #[command(flatten)]
    options: stage_model::Options,
}

#[derive(Debug, Parser)]
struct Text {
    #[command(flatten)]
    options: stage_text::Options,
}

/// The model that ships, much smaller.
fn config(folder: &Path) -> PathBuf {
    let mut config = ModelConfig::named("demo").unwrap();
    (config.dit.dim, config.dit.ffn_dim, config.dit.num_heads, config.dit.num_layers) = (48, 96, 2, 1);
    (config.text.dim_ffn, config.text.num_layers) = (64, 1);
    (config.vae.dim, config.vae.dim_mult) = (4, vec![1, 1, 2, 2]);
    let path = folder.join("given.json");
    fs::write(&path, serde_json::to_string(&config).unwrap()).unwrap();
    path
}

fn vae(folder: &Path, more: &[&str]) {
    let (config, out) = (config(folder), folder.display().to_string());
    let common =
        ["vae", "--config", config.to_str().unwrap(), "--out", &out, "--batch", "1", "--frames", "5"];
    let args: Vec<&str> = common.iter().chain(more).copied().collect();
    stage_vae::run(&Vae::parse_from(args).options, Device::Cpu).unwrap();
}

fn model(folder: &Path, out: &str, more: &[&str]) {
    let (vae, out) = (folder.display().to_string(), folder.join(out).display().to_string());
    let small = ["--batch", "2", "--bank", "3", "--refresh", "0", "--look", "0"];
    let common = ["model", "--vae", &vae, "--out", &out];
    let args: Vec<&str> = common.iter().chain(&small).chain(more).copied().collect();
    stage_model::run(&Model::parse_from(args).options, Device::Cpu).unwrap();
}

/// Every loss of a curve, by name.
fn losses(path: &Path, name: &str) -> Vec<f64> {
    let text = fs::read_to_string(path).unwrap();
    let fields = text.split([',', '\n']).filter_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    fields.map(|value| value.parse().unwrap()).collect()
}

#[test]
fn losses_fall_and_a_cut_run_goes_on_with_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    vae(folder, &["--steps", "40", "--rate", "5e-3"]);
    let curve = losses(&folder.join("vae.csv"), "l1");
    assert!(curve.len() == 2 && curve[1] < 0.9 * curve[0], "{curve:?}");

    tokens::train(1, 512, &folder.join("tokenizer.json")).unwrap();
    let weights = |out: &str| fs::read(folder.join(out).join("dit.safetensors")).unwrap();
    model(folder, "whole", &["--steps", "6"]);
    let state = folder.join("state").display().to_string();
    model(folder, "cut", &["--steps", "6", "--pause-at", "3", "--state", &state]);
    model(folder, "cut", &["--steps", "6", "--state", &state]);
    assert_eq!(weights("whole"), weights("cut"), "six steps, and three and three");
    model(folder, "muon", &["--steps", "6", "--muon"]);
    let of = |out: &str| losses(&folder.join(out).join("model.csv"), "norm");
    assert!(weights("muon") != weights("whole") && of("muon").iter().all(|norm| norm.is_finite()));
    let from = folder.join("muon").display().to_string();
    model(folder, "tuned", &["--steps", "4", "--from", &from, "--tune", "--rollout", "1"]);
    let of = |loss: &str| losses(&folder.join("tuned/model.csv"), loss);
    assert!(of("next").is_empty() && of("own_context").iter().all(|loss| loss.is_finite()));
    assert!(!of("own_context").is_empty(), "every later chunk of a tuned run follows an own one");
}

#[test]
fn the_text_encoder_alone_learns_what_prompts_say_and_to_say_it_as_another_did() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::copy(config(folder), folder.join("config.json")).unwrap();
    tokens::train(1, 512, &folder.join("tokenizer.json")).unwrap();
    let text = |out: &str, more: &[&str], loss: &str| {
        let (model, out) = (folder.display().to_string(), folder.join(out).display().to_string());
        let common =
            ["text", "--model", &model, "--out", &out, "--steps", "100", "--batch", "8", "--examined", "8"];
        let args: Vec<&str> = common.iter().chain(more).copied().collect();
        stage_text::run(&Text::parse_from(args).options, Device::Cpu).unwrap();
        losses(&Path::new(&out).join("text.csv"), loss)
    };
    let curve = text(".", &[], "attributes");
    assert!(curve.len() == 2 && curve[1] < 0.95 * curve[0], "{curve:?}");
    let apart = text("another", &["--seed", "9", "--keep", "30", "--muon"], "moved");
    assert!(apart[1] < 0.8 * apart[0], "from fresh weights: {apart:?}");
    let same = text("same", &["--go-on", "--keep", "30"], "moved");
    assert!(same[0] < 0.1 * apart[0], "from its own: {same:?}, from fresh ones {apart:?}");
}

#[test]
fn objects_are_where_another_paint_shows() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let renderer = BatchRenderer::new(Device::Cpu);
    let frames: Vec<Frame> = (0..12)
        .map(|_| {
            let scene = Scene::draw_with(Split::Training, 0.5, &mut rng);
            Mix::of(scene).show(&State::anywhere(&scene, &mut rng))
        })
        .collect();
    let painted = |rgb: [f32; 3]| {
        let paint = |frame: &Frame| Frame { rgb, second: SecondObject { rgb, ..frame.second }, ..*frame };
        renderer.draw(&frames.iter().map(paint).collect::<Vec<_>>())
    };
    // What another paint changes is an object.
    let differs = (painted([0.0; 3]) - painted([255.0; 3])).abs().amax([1].as_slice(), true).gt(0.1);
    let objects = renderer.objects(&frames).gt(0.0);
    let outside = differs.logical_and(&objects.logical_not()).sum(Kind::Int64).int64_value(&[]);
    let (seen, inside) =
        (differs.sum(Kind::Int64).int64_value(&[]), objects.sum(Kind::Int64).int64_value(&[]));
    assert!(outside == 0 && seen > 12 * 300, "{outside} of {seen} pixels of objects are not in them");
    assert!(inside < 4 * seen, "{inside} pixels for {seen}");
}

#[test]
fn frames_drawn_in_batches_are_those_of_the_world() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let (batches, renderer) = (BatchRenderer::new(Device::Cpu), Renderer::default());
    let mut frames: Vec<Frame> = (0..6)
        .flat_map(|_| {
            Sample::draw(World { companions: 0.5, ..World::EVEN }, &mut rng)
                .frames(&mut rng)
                .into_iter()
                .step_by(8)
        })
        .collect();
    let scene = Scene::draw(Split::HeldOut, &mut rng);
    frames.extend(Mix::of(scene).play(&mut State::start(scene.motion, (1.0, -1.0)), 3));
    let drawn = ((batches.draw(&frames) + 1.0) * 127.5).permute([0, 2, 3, 1]);
    for (i, frame) in (0..).zip(&frames) {
        let expected = renderer.draw(frame);
        assert_eq!(expected.len(), PICTURE);
        let expected = tch::Tensor::from_slice(&expected).to_kind(Kind::Float);
        let off = f64::try_from((drawn.get(i).flatten(0, -1) - expected).abs().mean(Kind::Float)).unwrap();
        assert!(off < 0.6, "frame {i}: {off} of 255: {frame:?}");
    }
}
