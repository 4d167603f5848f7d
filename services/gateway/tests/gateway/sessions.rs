use std::time::Duration;

use contract::Reason;
use contract::session::Control;
use serde_json::json;

use crate::harness::cell::{Cell, Session};
use crate::harness::client::{Viewer, Wish};
use crate::harness::nats::Nats;
use crate::harness::{Gateway, eventually};

async fn watching() -> (Nats, Cell, Gateway, Viewer) {
    let nats = Nats::start();
    let cell = Cell::start(&nats).await;
    let gateway = Gateway::start(&nats, |_| {}).await;
    gateway.ready().await;
    let mut viewer = Viewer::connect(&gateway, Wish::default()).await.unwrap();
    viewer.message("session_state").await;
    (nats, cell, gateway, viewer)
}

fn closed(session: &Session) -> Option<()> {
    session.controls.iter().any(|control| matches!(control, Control::Close { .. })).then_some(())
}

async fn none_left(gateway: &Gateway) {
    eventually("no session is left", async || {
        (gateway.get("/api/v1/cell").await.1["sessions"] == 0).then_some(())
    })
    .await;
}

/// A session begins with its offer, and its channel opens only once the client has connected.
#[tokio::test(flavor = "multi_thread")]
async fn what_happened_before_the_channel_was_open_is_told_when_it_is() {
    let (_nats, _cell, _gateway, mut viewer) = watching().await;
    assert_eq!(viewer.message("chunk").await["chunk_index"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_up_tells_the_client_and_frees_the_session() {
    let (_nats, cell, gateway, mut viewer) = watching().await;
    let path = format!("/api/v1/webrtc/offer/{}", viewer.id);
    assert_eq!(gateway.delete(&path).await, 204);
    assert_eq!(viewer.message("stream_stopped").await, json!({"type": "stream_stopped"}));
    cell.seen(viewer.id, "closed", closed).await;
    none_left(&gateway).await;
    assert_eq!(gateway.delete(&path).await, 204, "an unknown session has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_closes_its_channel_or_connection_frees_its_session() {
    let (_nats, cell, gateway, viewer) = watching().await;
    viewer.channel.close().await.unwrap();
    cell.seen(viewer.id, "closed", closed).await;
    none_left(&gateway).await;

    let viewer = Viewer::connect(&gateway, Wish::default()).await.unwrap();
    viewer.connection.close().await.unwrap();
    cell.seen(viewer.id, "closed", closed).await;
    none_left(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_at_stage0_ends_the_stream_with_its_reason() {
    let (_nats, cell, gateway, mut viewer) = watching().await;
    cell.end(viewer.id, Reason::RankLost, "rank 1 died").await;
    let stopped = viewer.message("stream_stopped").await;
    assert_eq!(stopped["error_message"], "rank 1 died");
    none_left(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_stage0_dies_the_client_is_told_within_two_seconds() {
    let (_nats, cell, gateway, mut viewer) = watching().await;
    cell.die();
    let stopped = viewer.message_within("stream_stopped", Duration::from_secs(2)).await;
    assert!(stopped["error_message"].as_str().unwrap().contains("stopped answering"));
    none_left(&gateway).await;
    assert_eq!(gateway.get("/ready").await.0, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_tells_its_clients_and_leaves_in_time() {
    let (_nats, cell, gateway, mut viewer) = watching().await;
    assert!(matches!(gateway.stop().await, runtime::Outcome::Stopped));
    let stopped = viewer.message("stream_stopped").await;
    assert!(stopped["error_message"].as_str().unwrap().contains("shutting down"));
    cell.seen(viewer.id, "closed", closed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trickled_candidates_are_taken_and_nonsense_is_a_404() {
    let (_nats, _cell, gateway, viewer) = watching().await;
    let path = format!("/api/v1/webrtc/offer/{}", viewer.id);
    let one = |candidate: &str| json!({"candidates": [{"candidate": candidate, "sdpMid": "0", "sdpMLineIndex": 0}]});
    let host = "candidate:842163049 1 udp 2122260223 127.0.0.1 51234 typ host generation 0";
    let hidden = "candidate:1 1 udp 2122260223 7c9f-2a.local 51234 typ host";
    for candidate in [host, hidden, ""] {
        assert_eq!(gateway.patch(&path, &one(candidate)).await.0, 204, "{candidate:?}");
    }
    let (status, body) = gateway.patch(&path, &one("candidate:nonsense")).await;
    assert!(status == 404 && body["detail"].as_str().unwrap().starts_with("Invalid ICE candidate"));
    let unknown = "/api/v1/webrtc/offer/6a0c4a3e-1f55-4d0f-8a2e-3f0c1b6f7a11";
    assert_eq!(gateway.patch(unknown, &one(host)).await.0, 404);
    assert_eq!(gateway.patch(unknown, &json!({"candidates": []})).await.0, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_loss_of_the_broker_does_not_end_the_session() {
    let (mut nats, _cell, gateway, mut viewer) = watching().await;
    nats.kill();
    eventually("the loss is noticed", async || (gateway.get("/ready").await.0 == 503).then_some(())).await;
    nats.restart();
    gateway.ready().await;
    viewer.skip_packets();
    viewer.packet().await;
    assert_eq!(gateway.get("/api/v1/cell").await.1["sessions"], 1);
    viewer.connection.close().await.unwrap();
}
