//! A mesh of real processes makes the same chunks whatever its size, again and again.

use crate::harness::{self, Mesh};
use contract::Reason;
use contract::envelope::{Action, MeshPhase, Reply};
use contract::status::Role;

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn world_sizes_1_2_and_4_give_the_same_latents_and_two_runs_the_same_bytes() {
    let mut alone: Option<Vec<Vec<f32>>> = None;
    for world_size in [1, 2, 4] {
        let mesh = Mesh::start(world_size, &[]).await;
        let mut controller = mesh.controller().await;
        let first = controller.three_chunks(1).await;
        let again = controller.three_chunks(2).await;
        assert_eq!(first, again, "world size {world_size}: two runs differ");
        assert_ne!(first[0], first[1]);
        let alone = alone.get_or_insert_with(|| first.clone());
        for (index, (one, many)) in alone.iter().zip(&first).enumerate() {
            let difference = largest_difference(one, many);
            assert!(difference <= 1e-4, "world size {world_size}, chunk {index}: {difference}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_says_what_was_observed_and_is_given_again_to_the_same_call() {
    let mesh = Mesh::start(2, &[]).await;
    let mut controller = mesh.controller().await;
    let call = controller.chunk(1, 0);
    let (result, _) = controller.latents(&call).await;
    assert_eq!(result.observed_generator_calls, 4);
    assert_eq!(result.mesh_current_start_frame, 3);
    assert!(result.timings.generator_us > 0 && result.timings.plan_us > 0);
    let again = controller.send(&call).await.unwrap();
    assert_eq!(again, result);

    let state = controller.noop().await.unwrap();
    assert_eq!((state.phase, state.running), (MeshPhase::Ready, None));
    let next = controller.chunk(1, 1);
    assert_eq!(controller.latents(&next).await.0.observed_generator_calls, 5);
    assert_eq!(controller.ask(Action::Bye).await.unwrap(), Reply::Bye);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recompute_is_on_exactly_where_the_envelope_says_so_and_every_forward_is_counted() {
    let mesh = Mesh::start(2, &[]).await;
    let mut controller = mesh.controller().await;
    let step_lists = [vec![1000, 750, 500, 250], vec![1000]];
    for (cache_epoch, index) in (1..).zip([0, 1, 2, 0, 1, 0, 1]) {
        for (half, steps) in (0..).zip(&step_lists) {
            let mut call = controller.hard_cut(2 * cache_epoch + half, index);
            let recompute = index > 0;
            let expected = u32::try_from(steps.len()).unwrap() + u32::from(recompute);
            assert_eq!(call.infer().do_kv_recompute, recompute);
            call.infer().denoising_steps.clone_from(steps);
            call.infer().expected_generator_calls = expected;
            let (result, _) = controller.latents(&call).await;
            assert_eq!(result.observed_generator_calls, expected, "chunk {index}, steps {steps:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_leader_and_worker_with_0() {
    let mesh = Mesh::start(2, &[]).await;
    let five = std::time::Duration::from_secs(5);
    let Mesh { leader, mut workers, bus, broker } = mesh;
    leader.signal(libc::SIGTERM);
    assert_eq!(leader.ended(five).await.0.code(), Some(0));
    let worker = workers.pop().unwrap();
    // It keeps its shard and waits for another leader.
    harness::status(&bus, |s| s.role == Role::TpWorker && s.mesh.as_ref().is_some_and(|m| m.epoch.is_none()))
        .await;
    worker.signal(libc::SIGTERM);
    assert_eq!(worker.ended(five).await.0.code(), Some(0));
    drop(broker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_ends_the_call_with_rank_lost_and_a_new_one_brings_the_mesh_back() {
    let mut mesh = Mesh::start(2, &[]).await;
    let mut controller = mesh.controller().await;
    let before = controller.three_chunks(1).await;
    let old_epoch = controller.epoch;
    mesh.workers.pop().unwrap().signal(libc::SIGKILL);
    mesh.status(|s| s.role == Role::MeshLeader && !s.ready).await;
    mesh.workers.push(harness::spawn("tp-worker", &mesh.broker, &[], false));
    let mut controller = mesh.controller().await;
    assert!(controller.epoch > old_epoch);
    assert_eq!(controller.three_chunks(1).await, before);
    assert!(mesh.leader.running());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_workers_death_the_next_chunk_is_that_of_a_hard_cut_with_the_same_context() {
    let mut mesh = Mesh::start(2, &[]).await;
    let mut controller = mesh.controller().await;
    controller.three_chunks(1).await;
    let call = controller.chunk(1, 3);
    let worker = mesh.workers.pop().unwrap();
    // Stopped, it cannot finish the call before it dies, or is given up for its silence.
    worker.signal(libc::SIGSTOP);
    let kill_while_it_runs = async {
        mesh.status(|s| s.mesh.as_ref().is_some_and(|m| m.running.is_some())).await;
        worker.signal(libc::SIGKILL);
        std::future::pending::<()>().await;
    };
    let answer = tokio::select! {
        answer = controller.send(&call) => answer,
        () = kill_while_it_runs => unreachable!("it waits for the answer"),
    };
    assert_eq!(answer.unwrap_err().reason, Reason::RankLost);
    worker.signal(libc::SIGKILL);
    mesh.workers.push(harness::spawn("tp-worker", &mesh.broker, &[], false));
    let epoch = controller.epoch;
    mesh.status(|s| {
        let formed = s.mesh.as_ref().is_some_and(|m| m.epoch.is_some_and(|e| e > epoch));
        s.role == Role::MeshLeader && s.ready && formed
    })
    .await;
    let mut controller = mesh.controller().await;
    let recovered = controller.hard_cut(2, 3);
    let (_, recovered) = controller.latents(&recovered).await;

    controller.three_chunks(3).await;
    let asked = controller.hard_cut(4, 3);
    let (_, asked) = controller.latents(&asked).await;
    let difference = largest_difference(&recovered, &asked);
    assert!(difference <= 1e-4, "{difference}");
}
