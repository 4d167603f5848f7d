use contract::event::{Event, SessionState};
use contract::params::Parameters;
use contract::session::Control;
use contract::{CacheEpoch, ChunkIndex, Error, Reason};
use serde_json::json;
use webrtc_viewer::{Viewer, Wish};

use crate::harness::cell::Cell;
use crate::harness::nats::Nats;
use crate::harness::{Gateway, eventually};

async fn watching() -> (Nats, Cell, Gateway, Viewer) {
    let nats = Nats::start();
    let cell = Cell::start(&nats).await;
    let gateway = Gateway::start(&nats, |_| {}).await;
    gateway.ready().await;
    let viewer = Viewer::connect(&gateway.url, Wish::default()).await.unwrap();
    (nats, cell, gateway, viewer)
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_over_the_data_channel_are_accepted_by_number_or_refused_by_name() {
    let (_nats, cell, gateway, mut viewer) = watching().await;
    viewer.say(r#"{"quantize_mode":"none","lookahead_ms":0}"#).await;
    viewer.say(r#"{"prompts":[{"text":"a red fox"}],"base_seed":7}"#).await;
    assert_eq!(viewer.message("parameters_accepted").await["update"], 1);
    let updates =
        cell.seen(viewer.id, "one update", |s| (!s.updates.is_empty()).then(|| s.updates.clone())).await;
    assert_eq!((updates.len(), updates[0].base_seed), (1, Some(7)));
    for (text, reason) in [
        (r#"{"noise_scale":2}"#, "bad_field"),
        (r#"{"vace_ref_images":["a.png"]}"#, "unsupported_parameter"),
        ("{nonsense", "malformed"),
    ] {
        viewer.say(text).await;
        let message = viewer.message("error").await;
        assert_eq!(message["error"]["reason"], reason);
        assert_eq!(message["error"]["retryable"], false);
    }
    let (_, current) = gateway.get("/api/v1/session/parameters").await;
    assert_eq!(current["parameters"]["prompts"][0]["text"], "a red fox");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stage0_says_reaches_the_client() {
    let (_nats, cell, gateway, mut viewer) = watching().await;
    assert_eq!(viewer.message("session_state").await["state"], "streaming");
    let changed = Box::new(Parameters { base_seed: Some(9), ..Parameters::default() });
    let (chunk_index, cache_epoch) = (ChunkIndex(4), CacheEpoch(2));
    let applied = Event::Applied { update: 3, chunk_index, cache_epoch, changed, transition_active: false };
    cell.tell(viewer.id, applied).await;
    let message = viewer.message("applied").await;
    assert_eq!((&message["update"], &message["changed"]), (&json!(3), &json!({"base_seed": 9})));
    let error = Some(Error::new(Reason::RankLost, "rank 1 died").for_client());
    cell.tell(viewer.id, Event::State { state: SessionState::Recovering, error }).await;
    let message = viewer.message("session_state").await;
    assert_eq!((&message["state"], &message["error"]["reason"]), (&json!("recovering"), &json!("rank_lost")));
    let (_, metrics) = gateway.get("/api/v1/session/metrics").await;
    assert_eq!(metrics["sessions"][viewer.id.to_string()]["state"], "recovering");
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_over_http_reach_every_session_and_their_clients() {
    let (_nats, cell, gateway, mut viewer) = watching().await;
    let (status, body) = gateway.post("/api/v1/session/parameters", &json!({"base_seed": 5})).await;
    assert_eq!((status, &body["applied_parameters"]), (200, &json!({"base_seed": 5})));
    assert_eq!(viewer.message("parameters_updated").await["parameters"], json!({"base_seed": 5}));
    cell.seen(viewer.id, "the update", |s| s.updates.iter().find(|u| u.base_seed == Some(5)).cloned()).await;
    let (status, body) = gateway.post("/api/v1/session/parameters", &json!({"prompts": ["x"]})).await;
    assert_eq!((status, &body["detail"][0]["loc"]), (422, &json!(["body", "prompts"])));
    assert_eq!(gateway.post("/api/v1/session/parameters", &json!({})).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_comes_as_jpeg() {
    let (_nats, _cell, gateway, _viewer) = watching().await;
    let response =
        gateway.http.get(gateway.url.clone() + "/api/v1/session/frame?quality=50").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "image/jpeg");
    assert_eq!(&response.bytes().await.unwrap()[..], [0xff, 0xd8, 0xff]);
    let (status, body) = gateway.get("/api/v1/session/frame?quality=0").await;
    assert_eq!((status, &body["detail"][0]["loc"]), (422, &json!(["query", "quality"])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyframe_is_asked_for_when_a_viewer_joins_when_it_asks_and_after_a_gap() {
    let (_nats, cell, gateway, mut viewer) = watching().await;
    let asked = |session: &crate::harness::cell::Session| {
        session.controls.iter().filter(|control| **control == Control::Keyframe).count()
    };
    let joined =
        cell.seen(viewer.id, "a keyframe for the viewer", |s| Some(asked(s)).filter(|n| *n > 0)).await;
    // A request may coincide with the keyframe of the join, which serves it: receivers ask again, and so does this one.
    let after = eventually("a keyframe on request", async || {
        viewer.ask_for_a_keyframe().await;
        cell.now(viewer.id, asked).filter(|count| *count > joined)
    })
    .await;
    viewer.skip_packets();
    let gaps = async || {
        let (_, metrics) = gateway.get("/api/v1/session/metrics").await;
        metrics["sessions"][viewer.id.to_string()]["gaps"].as_u64().unwrap()
    };
    // A viewer that joins in the middle of an access unit has a gap before its first.
    let before = gaps().await;
    cell.lose(viewer.id, 2);
    cell.seen(viewer.id, "a keyframe after the gap", |s| (asked(s) > after).then_some(())).await;
    eventually("the gap is counted", async || (gaps().await == before + 1).then_some(())).await;
    let numbers: Vec<u16> = {
        let mut numbers = Vec::new();
        while numbers.len() < 20 {
            numbers.push(viewer.packet().await.header.sequence_number);
        }
        numbers
    };
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1)), "{numbers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stage0_hears_that_someone_watches() {
    let (_nats, cell, _gateway, viewer) = watching().await;
    let watching = |s: &crate::harness::cell::Session| s.controls.contains(&Control::Viewer).then_some(());
    cell.seen(viewer.id, "a viewer is told of", watching).await;
}
