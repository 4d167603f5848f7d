//! A worker that refuses plans, miscounts, computes something else or holds other weights is found out: the client hears
//! of it, nobody hangs, and an honest worker in its place brings the picture back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::time::Duration;

use contract::event::{Event, SessionState};
use contract::model::Size;
use contract::status::{ProcessStatus, Role};
use serde_json::json;
use system_tests::viewer::creation;
use system_tests::{Cell, Viewer, wait};

const LIE: &str = "LYING_WORKER_LIE";
const WORKER: &str = "worker1";
/// A mesh makes four runs before it is ready: three warm-up chunks and the canary.
const AFTER: u32 = 8;

/// A cell whose worker tells this lie.
async fn lied_to(lie: &str) -> Cell {
    let mut cell = Cell::builder().supervised().without(WORKER).start().await;
    cell.start_as(WORKER, Some("lying-worker"), &[(LIE, lie)]);
    cell
}

fn fox() -> serde_json::Value {
    json!({"prompts": [{"text": "a red fox"}]})
}

/// The next error that the session's viewer is told with a text like this, whether the session goes on or not.
async fn told(viewer: &mut Viewer, text: &[&str]) -> String {
    viewer
        .event_where(|event| {
            let error = match event {
                Event::Error { error } | Event::State { error: Some(error), .. } => error,
                _ => return None,
            };
            text.iter().all(|text| error.message.contains(text)).then(|| error.message.clone())
        })
        .await
}

fn leader_fault(status: &ProcessStatus, text: &[&str]) -> bool {
    let fault = status.mesh.as_ref().and_then(|mesh| mesh.last_fault.as_ref());
    status.role == Role::MeshLeader
        && fault.is_some_and(|fault| text.iter().all(|text| fault.what.contains(text)))
}

async fn an_honest_worker_mends_it(cell: &mut Cell, viewer: &mut Viewer) {
    cell.remove(WORKER);
    cell.start_process(WORKER);
    let trace = viewer.suffer(std::future::ready(())).await;
    assert!(!trace.ended, "{:?}", trace.errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miscounted_call_is_a_fault_that_names_both_numbers() {
    let mut cell = lied_to(&format!("count:{AFTER}")).await;
    cell.wait_ready(Duration::from_secs(60)).await;
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &fox()).await;
    let text = told(&mut viewer, &["observed generator calls"]).await;
    assert!(text.contains("5 to 6 over the ranks") && text.contains("5 are expected"), "{text}");
    an_honest_worker_mends_it(&mut cell, &mut viewer).await;
    viewer.end().await;
    cell.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_that_disagree_on_their_output_give_no_picture() {
    let mut cell = lied_to(&format!("digest:{AFTER}")).await;
    cell.wait_ready(Duration::from_secs(60)).await;
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &fox()).await;
    told(&mut viewer, &["ranks disagree on their output"]).await;
    an_honest_worker_mends_it(&mut cell, &mut viewer).await;
    viewer.end().await;
    cell.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_weights_under_the_right_fingerprint_never_get_a_mesh_ready() {
    let mut cell = lied_to("weights").await;
    cell.status(|status| leader_fault(status, &["ranks disagree on their output"])).await;
    assert_eq!(cell.http().get("/ready").await.status, 503);
    cell.remove(WORKER);
    cell.start_process(WORKER);
    cell.wait_ready(Duration::from_secs(60)).await;
    cell.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_weights_are_refused_with_both_fingerprints_and_the_viewer_waits_for_the_right_ones() {
    let mut cell = Cell::builder().supervised().ready().await;
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &fox()).await;
    viewer.chunk().await;
    cell.remove(WORKER);
    cell.start_as(WORKER, None, &[("KINEMESH_MODEL__WEIGHTS", "synthetic:43")]);
    let status = cell.exit(WORKER, Duration::from_secs(20)).await;
    assert_eq!(status.code(), Some(2), "the configuration is at fault, which no restart mends");
    viewer
        .event_where(|event| {
            matches!(event, Event::State { state: SessionState::Recovering, .. }).then_some(())
        })
        .await;
    an_honest_worker_mends_it(&mut cell, &mut viewer).await;
    viewer.end().await;
    cell.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_refuses_plans_ends_their_session_with_the_reason_and_serves_the_others() {
    let cell = lied_to("sizes").await;
    cell.wait_ready(Duration::from_secs(60)).await;
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &fox()).await;
    viewer.chunk().await;

    let mut other = creation(&fox());
    other.size = Some(Size { width: 160, height: 160 });
    let mut refused = Viewer::create(&bus, &cell.id(), other).await.unwrap();
    let reason = wait::bounded("the end of the refused session", Duration::from_secs(20), async {
        refused
            .event_where(|event| match event {
                Event::State { state: SessionState::Ended, error } => Some(error.clone()),
                _ => None,
            })
            .await
    })
    .await
    .expect("a reason");
    assert!(reason.message.contains("rank 1 refuses the plan"), "{reason:?}");
    assert!(reason.message.contains("160x160"), "{reason:?}");

    // A refused plan leaves every rank idle: nothing was formed again, and the first session streams on.
    viewer.chunk().await;
    assert!(cell.ends().is_empty(), "{:?}", cell.ends());
    viewer.end().await;
    cell.stop().await;
}
