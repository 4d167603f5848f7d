//! Engines of one process, each with its own executor, over the loopback collective.
#![allow(clippy::unwrap_used, reason = "helpers of tests may")]

use std::time::{Duration, Instant};

use collectives::Rendezvous;
use contract::model::ModelInfo;
use contract::tp::{Plan, PlanId};
use contract::{CacheEpoch, Digest, MeshEpoch, Rank, Reason, SessionSlot, WorldSize};
use engine::PlacementSection;
use engine::settings::{DeviceSection, MeshSection, ModelSection, RankSettings};
use engine::{CallTensors, Engine, Group, Outcome};
use tch::Device;

fn settings() -> RankSettings {
    let (model, mesh) = (ModelSection::default(), MeshSection::default());
    let (device, placement) = (DeviceSection::default(), PlacementSection::default());
    RankSettings::resolve(&model, &mesh, &device, &placement, "test", "default").unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn load(world: u32, settings: &RankSettings) -> Vec<Engine> {
    let world_size = WorldSize::try_from(world).unwrap();
    let engines: Vec<Engine> = (0..world).map(|_| Engine::spawn(settings.engine.clone()).unwrap()).collect();
    let made = (world > 1).then(|| Rendezvous::create(Device::Cpu, world).unwrap());
    let bytes = made.as_ref().map(Rendezvous::to_bytes);
    let loading: Vec<_> = engines
        .iter()
        .zip(world_size.ranks())
        .map(|(engine, rank)| {
            let rendezvous = bytes.as_ref().map(|bytes| Rendezvous::from_bytes(bytes).unwrap());
            engine.load(Group { rank, world_size, rendezvous, meet_by: soon() }, soon())
        })
        .collect();
    for loaded in loading {
        loaded.blocking_recv().unwrap().unwrap();
    }
    engines
}

fn plan(model: &ModelInfo, id: u64, chunk: u64) -> Plan {
    let recompute = chunk > 0;
    Plan {
        mesh_epoch: MeshEpoch(1),
        plan_id: PlanId(id),
        slot: SessionSlot(0),
        cache_epoch: CacheEpoch(1),
        size: model.default_size().unwrap(),
        current_start_frame: chunk * u64::from(model.frames_per_chunk),
        num_latent_frames: model.frames_per_chunk,
        denoising_steps: vec![1000, 500],
        do_kv_recompute: recompute,
        init_cache: chunk == 0,
        reset_kv_cache: false,
        reset_crossattn_cache: false,
        base_seed: 3,
        kv_cache_attention_bias: 0.3,
        expected_generator_calls: model.expected_calls(2, recompute),
        conditioning: Digest::of(&[b"prompt"]),
        conditioning_follows: chunk == 0,
    }
}

fn run(engines: &[Engine], model: &ModelInfo, plan: &Plan) -> Vec<Outcome> {
    let tensors = |rank: usize| (rank == 0).then(|| CallTensors::fixed(model, plan, 5).unwrap());
    let running: Vec<_> =
        engines.iter().enumerate().map(|(rank, e)| e.run(plan.clone(), tensors(rank), soon())).collect();
    running.into_iter().map(|ran| ran.blocking_recv().unwrap().unwrap()).collect()
}

fn values(outcomes: &[Outcome]) -> Vec<f32> {
    let latents = outcomes[0].latents.as_ref().unwrap();
    let mut values = vec![0_f32; latents.numel()];
    latents.copy_data(&mut values, latents.numel());
    values
}

#[test]
fn ranks_agree_and_world_sizes_give_the_same_latents() {
    let settings = settings();
    let model = &settings.model;
    let mut alone = Vec::new();
    for world in [1, 2, 4] {
        let engines = load(world, &settings);
        for chunk in 0..3 {
            let plan = plan(model, chunk + 1, chunk);
            let outcomes = run(&engines, model, &plan);
            for outcome in &outcomes {
                assert!(outcome.digests_agree);
                assert_eq!(outcome.least_calls, plan.expected_generator_calls);
                assert_eq!(outcome.most_calls, plan.expected_generator_calls);
                assert_eq!(outcome.digest, outcomes[0].digest);
            }
            let latents = values(&outcomes);
            if world == 1 {
                alone.push(latents);
                continue;
            }
            let expected = &alone[usize::try_from(chunk).unwrap()];
            let largest = latents.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(largest <= 1e-4, "world size {world}, chunk {chunk}: {largest}");
        }
    }
}

#[test]
fn a_missing_rank_ends_the_run_by_its_deadline_and_a_new_epoch_works_again() {
    let settings = settings();
    let engines = load(2, &settings);
    let plan = plan(&settings.model, 1, 0);
    let tensors = CallTensors::fixed(&settings.model, &plan, 5).unwrap();
    let ran = engines[0].run(plan, Some(tensors), Instant::now() + Duration::from_millis(200));
    let error = ran.blocking_recv().unwrap().unwrap_err();
    assert!(matches!(error.reason, Reason::BudgetSpent | Reason::CallAborted), "{error}");
}

#[test]
fn an_abort_ends_the_run_of_a_rank_that_waits() {
    let settings = settings();
    let engines = load(2, &settings);
    let plan = plan(&settings.model, 1, 0);
    let tensors = CallTensors::fixed(&settings.model, &plan, 5).unwrap();
    let ran = engines[0].run(plan, Some(tensors), soon());
    engines[0].abort("rank 1 is lost");
    let error = ran.blocking_recv().unwrap().unwrap_err();
    assert_eq!(error.reason, Reason::CallAborted);
    assert!(error.message.contains("rank 1 is lost"), "{error}");
}

#[test]
fn a_mesh_forms_again_with_the_shards_it_has() {
    let settings = settings();
    let world_size = WorldSize::try_from(2).unwrap();
    let engines = load(2, &settings);
    let first = run(&engines, &settings.model, &plan(&settings.model, 1, 0));
    engines[0].abort("a new epoch");
    let made = Rendezvous::create(Device::Cpu, 2).unwrap();
    let loading: Vec<_> = engines
        .iter()
        .zip([Rank(0), Rank(1)])
        .map(|(engine, rank)| {
            let rendezvous = Some(Rendezvous::from_bytes(&made.to_bytes()).unwrap());
            engine.load(Group { rank, world_size, rendezvous, meet_by: soon() }, soon())
        })
        .collect();
    for loaded in loading {
        loaded.blocking_recv().unwrap().unwrap();
    }
    let again = run(&engines, &settings.model, &plan(&settings.model, 1, 0));
    assert_eq!(values(&first), values(&again));
}
