//! What is refused, how it is named on the asker's side, and that the mesh serves on afterwards.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::harness::{self, Broker, Controller, Mesh, spawn};
use contract::envelope::Action;
use contract::tensor::{Dtype, TensorKey};
use contract::{CallId, Class, Generation, InstanceId, MeshEpoch, Reason, SessionSlot};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_envelope_names_what_is_wrong_and_the_mesh_serves_on() {
    let mesh = Mesh::start(2, &[]).await;
    let mut controller = mesh.controller().await;
    let model = controller.model().clone();
    let first = controller.chunk(1, 0);
    controller.latents(&first).await;

    type Spoil = fn(&mut harness::Call);
    let cases: [(Reason, &str, u64, Spoil); 14] = [
        (Reason::UnsupportedVersion, "envelope version 9: 1 is spoken", 1, |c| c.envelope.version = 9),
        (Reason::BadShape, "latents_in has shape", 1, |c| c.spec(TensorKey::LatentsIn).shape[1] = 4),
        (Reason::BadDtype, "latents_in has dtype bf16: f32", 1, |c| {
            c.spec(TensorKey::LatentsIn).dtype = Dtype::Bf16;
        }),
        (Reason::MissingTensor, "context_frames is missing", 1, |c| {
            c.infer().tensors.retain(|spec| spec.key != TensorKey::ContextFrames);
        }),
        (Reason::MissingTensor, "latents_in is missing", 1, |c| {
            c.infer().tensors.retain(|spec| spec.key != TensorKey::LatentsIn);
        }),
        (Reason::CallCount, "expected_generator_calls is 7: the plan implies 5", 1, |c| {
            c.infer().expected_generator_calls = 7;
        }),
        (Reason::BadSteps, "[250, 500]", 1, |c| c.infer().denoising_steps = vec![250, 500]),
        (Reason::BadField, "num_latent_frames is 2: 3 is expected", 1, |c| c.infer().num_latent_frames = 2),
        (Reason::UnsupportedParameter, "noise_scale", 1, |c| c.infer().noise_scale = Some(0.5)),
        (Reason::BadField, "noise_scale is 2: 0 to 1", 1, |c| c.infer().noise_scale = Some(2.0)),
        (Reason::BadField, "session_slot 2: 0 to 1 exist", 1, |c| c.infer().session_slot = SessionSlot(2)),
        (Reason::StaleEpoch, "needs init_cache", 1, |c| c.infer().cache_epoch = contract::CacheEpoch(9)),
        (Reason::StaleEpoch, "mesh epoch 0", 1, |c| c.envelope.mesh_epoch = MeshEpoch(0)),
        (Reason::StaleEpoch, "continues at 3", 2, |_| {}),
    ];
    for (reason, text, index, spoil) in cases {
        let mut call = controller.chunk(1, index);
        let subject_epoch = call.envelope.mesh_epoch;
        spoil(&mut call);
        let error = if call.envelope.mesh_epoch == subject_epoch {
            controller.refused(call).await
        } else {
            // Another epoch's subject is served by nobody.
            let error = controller.refused(call).await;
            assert_eq!(error.reason, Reason::NoResponders);
            continue;
        };
        assert_eq!(error.reason, reason, "{error}");
        assert!(error.message.contains(text), "{error}");
    }

    let mut stale = controller.chunk(1, 1);
    stale.spec(TensorKey::LatentsIn).generation = Generation(99_999);
    let error = controller.refused(stale).await;
    assert_eq!(error.reason, Reason::StaleSlot, "{error}");

    let mut unknown = controller.chunk(1, 1);
    unknown.infer().tensors.retain(|spec| spec.key != TensorKey::ConditioningEmbeds);
    unknown.infer().conditioning = contract::Digest::of(&[b"another prompt"]);
    assert_eq!(controller.refused(unknown).await.reason, Reason::UnknownConditioning);

    let mut not_finite = controller.chunk(1, 1);
    let shape = model.latent_shape(model.default_size().unwrap(), model.frames_per_chunk);
    let nan = harness::pattern(&shape, 1) * f64::NAN;
    *not_finite.spec(TensorKey::LatentsIn) = controller.write(TensorKey::LatentsIn, &nan);
    assert_eq!(controller.refused(not_finite).await.reason, Reason::NotFinite);

    let mut repeated = controller.chunk(1, 1);
    repeated.envelope.call_id = CallId(2);
    let error = controller.refused(repeated).await;
    assert_eq!((error.reason, error.class()), (Reason::StaleCall, Class::Conflict), "{error}");

    let mut slow = controller.chunk(1, 1);
    slow.budget_ms = 0;
    assert_eq!(controller.refused(slow).await.reason, Reason::BudgetSpent);

    assert!(mesh.leader_is_ready(&mut controller).await);
    let good = controller.chunk(1, 1);
    controller.latents(&good).await;
}

/// Asks for the lease until it is given.
async fn successor(mesh: &Mesh) -> Controller {
    let asking = async {
        loop {
            match Controller::attach(&mesh.bus).await {
                Ok(controller) => return controller,
                Err(error) => assert_eq!(error.reason, Reason::LeaseHeld, "{error}"),
            }
        }
    };
    tokio::time::timeout(harness::PATIENCE, asking).await.expect("the lease is given")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_is_silent_for_the_time_of_its_lease_may_be_replaced() {
    let mesh = Mesh::start(1, &["mesh.lease_ttl_ms=600"]).await;
    let first = mesh.controller().await;
    let _there = first.is_there().await;
    successor(&mesh).await.three_chunks(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_controller_is_refused_while_the_first_is_there_and_an_older_lease_is_fenced() {
    let mesh = Mesh::start(1, &["mesh.lease_ttl_ms=600000"]).await;
    let mut first = mesh.controller().await;
    let (there, asked) = first.is_there().await;
    let give_up = Instant::now() + harness::PATIENCE;
    while asked.load(Ordering::Relaxed) < 3 {
        assert!(Instant::now() < give_up, "nobody looks for the holder");
        let Err(error) = Controller::attach(&mesh.bus).await else { panic!("two controllers") };
        assert_eq!(error.reason, Reason::LeaseHeld, "{error}");
        assert!(error.message.contains(&first.instance.to_string()));
    }

    let error = {
        let mut envelope = first.envelope(Action::Noop);
        envelope.controller = InstanceId::random();
        harness::request(&mesh.bus, &envelope, 2_000).await.unwrap_err()
    };
    assert_eq!(error.reason, Reason::Fenced, "{error}");

    let call = first.chunk(1, 0);
    drop(there);
    let mut second = successor(&mesh).await;
    assert_eq!(first.noop().await.unwrap_err().reason, Reason::Fenced);
    assert_eq!(first.refused(call).await.reason, Reason::Fenced);
    second.three_chunks(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_with_another_plan_or_other_weights_is_refused_with_both_values_and_ends_with_2() {
    let broker = Broker::start();
    let settings = ["mesh.world_size=2", "mesh.tp_plan=v1_generator_only"];
    let mut leader = spawn("mesh-leader", &broker, &settings, false);
    let bus = broker.bus().await;
    harness::status(&bus, |s| s.waiting_for.as_deref() == Some("workers 0/1")).await;

    let refused = async |settings: &[&str], text: &[&str]| {
        let worker = spawn("tp-worker", &broker, settings, true);
        let (status, stderr) = worker.ended(Duration::from_secs(20)).await;
        assert_eq!(status.code(), Some(2), "{stderr}");
        for text in text {
            assert!(stderr.contains(text), "{text} is not in: {stderr}");
        }
    };
    refused(
        &["mesh.tp_plan=v0_full_pipeline"],
        &["tp_plan_mismatch", "leader v1_generator_only", "worker v0_full_pipeline", "set by --set"],
    )
    .await;
    refused(&["model.weights=synthetic:43"], &["weights_mismatch", "model fingerprint: leader "]).await;

    // It still waits for a worker that fits, one that leaves the plan to its default included.
    let _worker = spawn("tp-worker", &broker, &[], false);
    Controller::attach(&bus).await.unwrap().three_chunks(1).await;
    assert!(leader.running());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_world_size_that_does_not_divide_the_heads_is_refused_at_start() {
    let broker = Broker::start();
    let leader = spawn("mesh-leader", &broker, &["mesh.world_size=3"], true);
    let (status, stderr) = leader.ended(Duration::from_secs(20)).await;
    assert_eq!(status.code(), Some(2));
    assert!(stderr.contains("mesh.world_size") && stderr.contains("1, 2, 4 are allowed"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_of_link_that_cannot_be_had_is_refused_at_start() {
    let broker = Broker::start();
    for (kind, text) in [
        ("cuda-ipc", "mesh.link: link kind cuda-ipc: a process that computes on cpu has shm"),
        ("nccl", "mesh.link: link kind nccl: a process that computes on cpu has shm"),
        ("tcp", "mesh.link"),
    ] {
        let leader = spawn("mesh-leader", &broker, &["device.kind=cpu", &format!("mesh.link={kind}")], true);
        let (status, stderr) = leader.ended(Duration::from_secs(20)).await;
        assert_eq!(status.code(), Some(2), "{kind}: {stderr}");
        assert!(stderr.contains(text), "{kind}: {stderr}");
    }
}
