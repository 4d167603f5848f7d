//! A mesh forms in whatever order its ranks come, stays when nothing happens, and waits for a leader only so long.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::time::Duration;

use contract::event::{Event, SessionState};
use contract::status::{ProcessStatus, Role};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;
use system_tests::{Cell, Signal, Viewer, wait};

const PATIENCE: Duration = Duration::from_secs(60);

async fn first_chunk(cell: &Cell) -> Viewer {
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &json!({"prompts": [{"text": "a red fox"}]})).await;
    assert_eq!(viewer.chunk().await.frames, 9);
    viewer
}

async fn forms_in_any_order(world_size: u16) {
    let workers = (1..world_size).map(|rank| format!("worker{rank}"));
    let mut names: Vec<String> =
        ["gateway", "stage0", "leader"].map(str::to_owned).into_iter().chain(workers).collect();
    let builder = Cell::builder().world_size(world_size);
    let mut cell = names.iter().fold(builder, |cell, name| cell.without(name)).start().await;
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    names.shuffle(&mut rng);
    for name in &names {
        cell.start_process(name);
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..400))).await;
    }
    cell.wait_ready(PATIENCE).await;
    first_chunk(&cell).await.end().await;
    cell.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_rank_forms_a_mesh_whenever_it_comes() {
    forms_in_any_order(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ranks_form_a_mesh_in_any_order() {
    forms_in_any_order(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_ranks_form_a_mesh_in_any_order() {
    forms_in_any_order(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_idles_for_four_watchdogs_is_the_same_and_serves_the_next_chunk() {
    let watchdog = Duration::from_secs(2);
    let key = "KINEMESH_MESH__WATCHDOG_MS";
    let ms = watchdog.as_millis().to_string();
    let cell = Cell::builder().env("leader", key, &ms).env("worker1", key, &ms).ready().await;
    let (mut first, mut statuses) = (None, Vec::<ProcessStatus>::new());
    cell.status(|status| {
        if status.role != Role::MeshLeader {
            return false;
        }
        let since = *first.get_or_insert(status.uptime_ms);
        statuses.push(status.clone());
        status.uptime_ms - since >= 4 * u64::try_from(watchdog.as_millis()).unwrap()
    })
    .await;
    let epochs: Vec<_> = statuses.iter().map(|status| status.mesh.as_ref().unwrap().epoch).collect();
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "the mesh formed again: {epochs:?}");
    assert!(statuses.iter().all(|status| status.ready), "{statuses:?}");
    assert!(cell.ends().is_empty(), "{:?}", cell.ends());
    first_chunk(&cell).await.end().await;
    cell.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_whose_leader_is_gone_for_good_end_with_3_and_the_viewer_knows() {
    let grace = Duration::from_secs(2);
    let ms = grace.as_millis().to_string();
    let key = "KINEMESH_MESH__ORPHAN_GRACE_MS";
    let cell = Cell::builder().env("worker1", key, &ms).ready().await;
    let mut viewer = first_chunk(&cell).await;
    let worker = cell.pid("worker1").unwrap();
    cell.signal("leader", Signal::Kill);
    let killed = std::time::Instant::now();
    viewer
        .event_where(|event| {
            matches!(event, Event::State { state: SessionState::Recovering, .. }).then_some(())
        })
        .await;
    let end = cell.end(worker, PATIENCE).await;
    assert_eq!(end.status.code(), Some(3), "{}", end.status);
    assert!(killed.elapsed() >= grace / 2, "it did not wait for another leader");
    wait::assert_within("the end of a worker", killed.elapsed(), grace + Duration::from_secs(1));
}
