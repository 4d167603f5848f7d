//! Parameters and chunks: what a session does with what it is told. Exact, by the digests of the latents.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use contract::event::{ChunkReport, Event, SessionState};
use contract::session::{Control, ControlReply};
use contract::{ChunkIndex, Digest};
use serde_json::{Value, json};
use system_tests::{Cell, Viewer, wait};

fn prompt(text: &str) -> Value {
    json!([{"text": text, "weight": 1.0}])
}

fn digests(reports: &[ChunkReport]) -> Vec<Digest> {
    reports.iter().map(|report| report.latents.clone()).collect()
}

async fn run(cell: &Cell, parameters: Value, last: u64) -> Vec<ChunkReport> {
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &parameters).await;
    let reports = viewer.chunks_until(last).await;
    viewer.end().await;
    reports
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_chunk_has_nine_frames_and_every_later_one_twelve() {
    let cell = Cell::builder().ready().await;
    let reports = run(&cell, json!({"prompts": prompt("a red fox")}), 3).await;
    let frames: Vec<_> = reports.iter().map(|report| report.frames).collect();
    assert_eq!(frames, [9, 12, 12, 12]);
    let indices: Vec<_> = reports.iter().map(|report| report.chunk_index.0).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_seeds_and_prompts_give_equal_latents_and_others_do_not() {
    let cell = Cell::builder().ready().await;
    let fox = json!({"prompts": prompt("a red fox"), "base_seed": 7});
    let first = digests(&run(&cell, fox.clone(), 2).await);
    assert_eq!(first, digests(&run(&cell, fox, 2).await));
    let other_seed = digests(&run(&cell, json!({"prompts": prompt("a red fox"), "base_seed": 8}), 2).await);
    let other_prompt =
        digests(&run(&cell, json!({"prompts": prompt("a blue whale"), "base_seed": 7}), 2).await);
    assert!(first.iter().zip(&other_seed).all(|(a, b)| a != b));
    assert!(first.iter().zip(&other_prompt).all(|(a, b)| a != b));
}

/// Opens a session, changes the prompt once chunk 1 is there, and returns the chunk it took effect at with all digests
/// until two chunks later.
async fn run_with_change(cell: &Cell, change: &Value) -> (u64, Vec<Digest>) {
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &json!({"prompts": prompt("a red fox")})).await;
    let mut reports = viewer.chunks_until(1).await;
    let update = viewer.update(change).await.unwrap();
    let mut applied = None;
    while applied.is_none() {
        match viewer.event().await {
            Event::Applied { update: number, chunk_index, .. } if number >= update => {
                applied = Some(chunk_index.0)
            }
            Event::Chunk(report) => reports.push(*report),
            _ => {}
        }
    }
    let applied = applied.unwrap();
    reports.extend(viewer.chunks_until(applied + 2).await);
    viewer.end().await;
    (applied, digests(&reports))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_change_takes_effect_at_the_chunk_the_event_names_and_at_no_other() {
    let cell = Cell::builder().ready().await;
    let change = json!({"prompts": prompt("a blue whale")});
    // The same change at the same chunk gives the same video. When it arrives is ours to choose only roughly, so it is made
    // until it has hit a chunk twice.
    let mut runs = BTreeMap::new();
    let (at, changed) = loop {
        let (at, changed) = run_with_change(&cell, &change).await;
        if let Some(before) = runs.insert(at, changed.clone()) {
            assert_eq!(changed, before);
            break (at, changed);
        }
        assert!(runs.len() < 9, "no chunk was hit twice: {:?}", runs.keys());
    };
    let unchanged = digests(&run(&cell, json!({"prompts": prompt("a red fox")}), at + 2).await);
    let at_index = usize::try_from(at).unwrap();
    assert_eq!(changed[..at_index], unchanged[..at_index], "nothing changes before chunk {at}");
    assert!(changed[at_index..].iter().zip(&unchanged[at_index..]).all(|(a, b)| a != b));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identical_prompt_changes_nothing() {
    let cell = Cell::builder().ready().await;
    let (_, repeated) = run_with_change(&cell, &json!({"prompts": prompt("a red fox")})).await;
    let last = repeated.len() as u64 - 1;
    let plain = digests(&run(&cell, json!({"prompts": prompt("a red fox")}), last).await);
    assert_eq!(repeated, plain);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transition_walks_for_its_chunks_and_becomes_the_prompt() {
    let cell = Cell::builder().ready().await;
    let bus = cell.bus("gateway").await;
    let target = digests(&run(&cell, json!({"prompts": prompt("a blue whale")}), 1).await);
    let mut viewer = Viewer::open(&bus, &cell.id(), &json!({"prompts": prompt("a red fox")})).await;
    viewer.chunks_until(1).await;
    let transition = json!({"transition": {"target_prompts": prompt("a blue whale"), "num_steps": 3}});
    viewer.update(&transition).await.unwrap();
    let started = viewer
        .event_where(|event| match event {
            Event::Applied { chunk_index, changed, .. } if changed.transition.is_some() => Some(*chunk_index),
            _ => None,
        })
        .await;
    let walked = viewer
        .event_where(|event| match event {
            Event::Applied { chunk_index, transition_active: false, .. } => Some(*chunk_index),
            _ => None,
        })
        .await;
    assert_eq!(walked.0 - started.0 + 1, 3, "chunks that the transition took");
    // A reset replays the first chunks of the seed with the prompt of now: exactly the target's.
    viewer.control(Control::Reset).await.unwrap();
    let epoch = viewer.next_history().await;
    let replay = [epoch.latents.clone(), viewer.chunk().await.latents];
    assert_eq!(replay.to_vec(), target);
    viewer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_replays_the_first_chunk_of_the_seed() {
    let cell = Cell::builder().ready().await;
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &json!({"prompts": prompt("a red fox")})).await;
    let before = viewer.chunks_until(1).await;
    viewer.update(&json!({"reset_cache": true})).await.unwrap();
    let first = viewer.next_history().await;
    assert!(first.cache_epoch > before[0].cache_epoch);
    assert_eq!(first.latents, before[0].latents);
    assert_eq!(first.frames, 9);
    assert_eq!(viewer.chunk().await.latents, before[1].latents);
    viewer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_step_list_starts_a_new_history_and_a_bad_one_changes_nothing() {
    let cell = Cell::builder().ready().await;
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &json!({"prompts": prompt("a red fox")})).await;
    let before = viewer.chunks_until(0).await;
    viewer.update(&json!({"denoising_step_list": [1000, 500]})).await.unwrap();
    let first = viewer.next_history().await;
    assert_eq!(first.chunk_index, ChunkIndex(0));
    assert_ne!(first.latents, before[0].latents);
    viewer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_stops_new_content_and_loses_no_state() {
    let cell = Cell::builder().ready().await;
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &json!({"prompts": prompt("a red fox")})).await;
    let mut reports = viewer.chunks_until(1).await;
    viewer.control(Control::Pause { paused: true }).await.unwrap();
    viewer
        .collecting(&mut reports, |event| {
            matches!(event, Event::State { state: SessionState::Paused, .. }).then_some(())
        })
        .await;
    // Nothing comes while it is paused, though the session answers. A chunk takes far less than this.
    let quiet = tokio::time::timeout(Duration::from_secs(4), viewer.chunk()).await;
    assert!(quiet.is_err(), "a chunk was made while paused: {quiet:?}");
    viewer.control(Control::Pause { paused: false }).await.unwrap();
    reports.push(viewer.chunk().await);
    reports.push(viewer.chunk().await);
    viewer.end().await;
    let last = reports.last().unwrap().chunk_index.0;
    let plain = run(&cell, json!({"prompts": prompt("a red fox")}), last).await;
    assert_eq!(digests(&reports), digests(&plain));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_with_all_its_sessions_refuses_one_more_and_frees_what_ends() {
    let cell = Cell::builder().env("stage0", "KINEMESH_STAGE0__MAX_SESSIONS", "1").ready().await;
    let bus = cell.bus("gateway").await;
    let fox = json!({"prompts": prompt("a red fox")});
    let mut viewer = Viewer::open(&bus, &cell.id(), &fox).await;
    viewer.chunk().await;
    let refused = Viewer::create(&bus, &cell.id(), system_tests::viewer::creation(&fox)).await;
    assert_eq!(refused.err().unwrap().reason, contract::Reason::TooManySessions);
    let ControlReply::Frame { jpeg, .. } = viewer.control(Control::Frame { quality: 80 }).await.unwrap()
    else {
        panic!("a frame was asked for");
    };
    assert!(jpeg.starts_with(&[0xff, 0xd8]), "a JPEG");
    viewer.end().await;
    let again = wait::until("a free session", Duration::from_secs(5), || async {
        Viewer::create(&bus, &cell.id(), system_tests::viewer::creation(&fox)).await.ok()
    })
    .await;
    again.end().await;
}
