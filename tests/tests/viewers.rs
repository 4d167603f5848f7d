//! Real WebRTC clients see moving pictures.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::time::Duration;

use serde_json::Value;
use system_tests::{Cell, python, wait};

const PATIENCE: Duration = Duration::from_secs(120);

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_plays_and_a_typed_prompt_changes_the_stream() {
    let cell = Cell::builder().ready().await;
    let args = ["--url", &cell.url(), "--prompt", "a blue whale", "--frames", "30"];
    let seen = python::run("browser.py", &args, PATIENCE).await;
    assert_eq!((number(&seen["width"]), number(&seen["height"])), (128.0, 128.0), "{seen}");
    assert!(number(&seen["frames"]) >= number(&seen["frames_before"]) + 30.0, "{seen}");
    assert!(number(&seen["deviation"]) > 2.0, "the picture is constant: {seen}");
    assert_eq!(seen["errors"].as_array().unwrap().len(), 0, "{seen}");
}

async fn watch_with(codec: &str, direction: &str) {
    let cell = Cell::builder().ready().await;
    let args =
        ["--url", &cell.url(), "--codec", codec, "--direction", direction, "--frames", "40", "--delete"];
    let seen = python::run("webrtc_view.py", &args, PATIENCE).await;
    assert_eq!(seen["frames"], 40, "{seen}");
    assert_eq!(seen["sizes"], serde_json::json!([[128, 128]]), "{seen}");
    assert!(number(&seen["deviation"]) > 2.0, "the picture is constant: {seen}");
    let codecs: Vec<_> =
        seen["codecs"].as_array().unwrap().iter().map(|c| c.as_str().unwrap().to_lowercase()).collect();
    assert!(codecs.iter().all(|name| name == codec || name == "rtx"), "{codecs:?}");
    let messages = seen["messages"].as_array().unwrap();
    let frames: Vec<_> =
        messages.iter().filter(|m| m["type"] == "chunk").map(|m| m["frames"].clone()).collect();
    assert!(frames.len() >= 2, "{seen}");
    assert!(frames[..1] == [9] && frames[1..].iter().all(|count| *count == 12), "{frames:?}");
    // DELETE frees the session: the cell serves the next viewer.
    let metrics = || async {
        let sessions = cell.http().get("/api/v1/session/metrics").await.json();
        sessions["sessions"].as_object().is_some_and(serde_json::Map::is_empty).then_some(())
    };
    wait::until("no session left", Duration::from_secs(5), metrics).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiortc_plays_h264_recvonly() {
    watch_with("h264", "recvonly").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiortc_plays_vp8_sendrecv() {
    watch_with("vp8", "sendrecv").await;
}
