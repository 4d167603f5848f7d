use contract::event::{Event, SessionState};
use contract::media::VideoCodec;
use contract::session::Control;
use contract::{CacheEpoch, ChunkIndex, Incarnation, Reason};
use serde_json::json;
use webrtc_viewer::{Viewer, Wish};

use crate::harness::cell::{Cell, Session};
use crate::harness::nats::Nats;
use crate::harness::{Gateway, eventually};

async fn watching() -> (Nats, Cell, Gateway, Viewer) {
    watching_with(|_| {}).await
}

async fn watching_with(change: impl FnOnce(&mut gateway::Config)) -> (Nats, Cell, Gateway, Viewer) {
    let nats = Nats::start();
    let cell = Cell::start(&nats).await;
    let gateway = Gateway::start(&nats, change).await;
    gateway.ready().await;
    let mut viewer = Viewer::connect(&gateway.url, Wish::default()).await.unwrap();
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

    let viewer = Viewer::connect(&gateway.url, Wish::default()).await.unwrap();
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
async fn an_end_at_stage0_that_nobody_told_ends_the_stream_too() {
    let (_nats, cell, gateway, mut viewer) = watching().await;
    cell.forget(viewer.id);
    let stopped = viewer.message("stream_stopped").await;
    assert_eq!(stopped["error_message"], "the session has ended");
    none_left(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage0_that_is_gone_for_good_ends_the_stream_with_a_message() {
    let (_nats, cell, gateway, mut viewer) = watching_with(|config| config.gateway.recovery_s = 0).await;
    cell.die();
    let stopped = viewer.message("stream_stopped").await;
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
    // The session waits at stage0 for the client to come back.
    assert_eq!(cell.now(viewer.id, closed), Some(None), "it was closed");
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
async fn a_stage0_that_is_replaced_goes_on_in_the_same_track() {
    let (nats, cell, gateway, mut viewer) = watching().await;
    let update = json!({"base_seed": 5});
    assert_eq!(gateway.post("/api/v1/session/parameters", &update).await.0, 200);
    let last = viewer.packet().await.header;
    cell.die();
    let told = viewer.message("session_state").await;
    assert_eq!((&told["state"], &told["error"]["reason"]), (&json!("recovering"), &json!("recovering")));
    viewer.skip_packets();
    let cell = Cell::start(&nats).await;
    let created = cell.seen(viewer.id, "another life", |session| session.created.clone()).await;
    assert_eq!((created.incarnation, created.update), (Incarnation(2), 1));
    assert_eq!((created.parameters.base_seed, created.codec), (Some(5), VideoCodec::Vp8));
    assert!(created.parameters.prompts.is_some(), "all that was acknowledged");
    let told = viewer.message("session_state").await;
    assert_eq!(told["state"], "streaming");
    let next = viewer.packet().await.header;
    assert_eq!((next.ssrc, next.payload_type), (last.ssrc, last.payload_type));
    assert!(next.sequence_number.wrapping_sub(last.sequence_number) < 1000, "numbers go on");
    assert!(next.timestamp.wrapping_sub(last.timestamp) < u32::MAX / 2, "time does not step back");
    // Whoever still speaks for the first life is not heard.
    let late = Event::State { state: SessionState::Ended, error: None };
    cell.tell_as(viewer.id, Incarnation(1), late).await;
    let continued =
        Event::Continued { chunk_index: ChunkIndex(3), cache_epoch: CacheEpoch(2), restored: true };
    cell.tell(viewer.id, continued).await;
    let told = viewer.message("continued").await;
    assert_eq!((&told["chunk_index"], &told["restored"]), (&json!(3), &json!(true)));
    assert_eq!(gateway.get("/api/v1/cell").await.1["sessions"], 1);
    viewer.connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_lives_elsewhere_is_left_alone() {
    let (_nats, cell, gateway, mut viewer) = watching().await;
    let elsewhere = Event::State { state: SessionState::Streaming, error: None };
    cell.tell_as(viewer.id, Incarnation(2), elsewhere).await;
    let stopped = viewer.message("stream_stopped").await;
    assert!(stopped["error_message"].as_str().unwrap().contains("another connection"), "{stopped}");
    none_left(&gateway).await;
    assert_eq!(cell.now(viewer.id, closed), Some(None), "it was not ours to end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_of_the_broker_is_told_and_survived() {
    let (mut nats, _cell, gateway, mut viewer) = watching().await;
    nats.kill();
    let told = viewer.message("session_state").await;
    assert_eq!(
        (&told["state"], &told["error"]["reason"]),
        (&json!("recovering"), &json!("broker_unavailable"))
    );
    nats.restart();
    gateway.ready().await;
    // A cell that is slow to connect again is missed once more in between.
    while viewer.message("session_state").await["state"] != "streaming" {}
    viewer.skip_packets();
    viewer.packet().await;
    assert_eq!(gateway.get("/api/v1/cell").await.1["sessions"], 1);
    viewer.connection.close().await.unwrap();
}
