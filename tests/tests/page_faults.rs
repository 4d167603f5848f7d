//! The page outlives the processes that make its picture, and says what it waits for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::time::Duration;

use serde_json::Value;
use system_tests::session::{in_state, session, streaming};
use system_tests::{Cell, Signal, python};

const PATIENCE: Duration = Duration::from_secs(100);

/// Takes a process away under a page that plays, and brings it back: the page says so, and plays on.
async fn outlives(process: &str) {
    let mut cell = Cell::builder().ready().await;
    let url = cell.url();
    let mut page = python::start("browser.py", &["--url", &url, "--frames", "30", "--recover"]);
    let id = streaming(&cell, 60).await;
    page.says("playing", PATIENCE).await;
    cell.signal(process, Signal::Kill);
    cell.exit(process, Duration::from_secs(5)).await;
    in_state(&cell, "recovering").await;
    cell.start_process(process);
    in_state(&cell, "streaming").await;
    assert_eq!(session(&cell).await.unwrap().0, id, "the same session");
    let seen = page.finish(PATIENCE).await;
    assert!(seen["frames_recovered"].as_u64().unwrap() >= 30, "{seen}");
    assert!(seen["curtain"].as_str().unwrap().contains("One moment"), "{seen}");
    assert_eq!(seen["curtain_away"], true, "{seen}");
    // What the page asks in the gap is refused as unavailable, which a browser notes by itself.
    let refused = |error: &&Value| error.as_str().unwrap().contains("status of 503");
    let errors: Vec<_> = seen["errors"].as_array().unwrap().iter().filter(|e| !refused(e)).collect();
    assert!(errors.is_empty(), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_outlives_a_worker() {
    outlives("worker1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_outlives_its_stage0() {
    outlives("stage0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_what_a_fault_that_lasts_waits_for() {
    let cell = Cell::builder().ready().await;
    let url = cell.url();
    let mut page =
        python::start("browser.py", &["--url", &url, "--frames", "1", "--curtain", "Still waiting"]);
    page.says("playing", PATIENCE).await;
    cell.signal("worker1", Signal::Kill);
    let seen = page.finish(PATIENCE).await;
    let curtain = seen["curtain"].as_str().unwrap();
    assert!(curtain.contains("The parts of the server are coming together. It has taken "), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_outlives_the_broker() {
    outlives(system_tests::cell::BROKER).await;
}
