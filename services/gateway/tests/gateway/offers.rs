use contract::media::VideoCodec;
use rtc::rtp_transceiver::RTCRtpTransceiverDirection;
use serde_json::{Value, json};
use webrtc_viewer::{Viewer, Wish};

use crate::harness::cell::Cell;
use crate::harness::nats::Nats;
use crate::harness::{Gateway, answer};

async fn ready(change: impl FnOnce(&mut gateway::Config)) -> (Nats, Cell, Gateway) {
    let nats = Nats::start();
    let cell = Cell::start(&nats).await;
    let gateway = Gateway::start(&nats, change).await;
    gateway.ready().await;
    (nats, cell, gateway)
}

/// The keyframe a viewer begins with, as the first packet's payload tells.
fn starts_a_keyframe(codec: VideoCodec, payload: &[u8]) -> bool {
    match codec {
        // STAP-A, with the parameter sets in it.
        VideoCodec::H264 => payload[0] & 0x1f == 24 || payload[0] & 0x1f == 7,
        // A descriptor with a picture id of one or two bytes; then the frame, whose first bit is 0 for a keyframe.
        VideoCodec::Vp8 => {
            let header = if payload[2] & 0x80 == 0 { 3 } else { 4 };
            payload[0] & 0x10 != 0 && payload[header] & 1 == 0
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_viewer_gets_video_from_a_keyframe_on_with_exact_times() {
    let (_nats, cell, gateway) = ready(|_| {}).await;
    for codec in [VideoCodec::H264, VideoCodec::Vp8] {
        for direction in [RTCRtpTransceiverDirection::Recvonly, RTCRtpTransceiverDirection::Sendrecv] {
            let wish = Wish { codecs: vec![codec], direction, audio: true, ..Wish::default() };
            let mut viewer = Viewer::connect(&gateway.url, wish).await.unwrap();
            let first = viewer.packet().await;
            assert!(starts_a_keyframe(codec, &first.payload), "{codec:?} {direction}");
            let mut times = vec![first.header.timestamp];
            while times.len() < 5 {
                let time = viewer.packet().await.header.timestamp;
                if times.last() != Some(&time) {
                    times.push(time);
                }
            }
            assert!(times.windows(2).all(|pair| pair[1].wrapping_sub(pair[0]) == 3600), "{times:?}");
            check_answer(&viewer.answer, direction);
            let created = cell.seen(viewer.id, "created", |session| session.created.clone()).await;
            assert_eq!(created.codec, codec);
            assert_eq!(gateway.delete(&format!("/api/v1/webrtc/offer/{}", viewer.id)).await, 204);
            viewer.message("stream_stopped").await;
        }
    }
}

fn check_answer(sdp: &str, offered: RTCRtpTransceiverDirection) {
    let sections: Vec<&str> = sdp.split("\r\nm=").collect();
    let section = |kind: &str| *sections.iter().find(|section| section.starts_with(kind)).unwrap();
    let expected = if offered == RTCRtpTransceiverDirection::Recvonly { "a=sendonly" } else { "a=sendrecv" };
    assert!(section("video").contains(expected) && section("video").contains("a=msid:"), "{sdp}");
    assert!(section("audio").contains("a=inactive"), "{sdp}");
    assert!(sdp.contains("typ host") && sdp.contains("a=end-of-candidates"), "{sdp}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_order_of_codecs_decides() {
    let (_nats, cell, gateway) = ready(|_| {}).await;
    for codecs in [[VideoCodec::H264, VideoCodec::Vp8], [VideoCodec::Vp8, VideoCodec::H264]] {
        let wish = Wish { codecs: codecs.to_vec(), ..Wish::default() };
        let mut viewer = Viewer::connect(&gateway.url, wish).await.unwrap();
        let created = cell.seen(viewer.id, "created", |session| session.created.clone()).await;
        assert_eq!(created.codec, codecs[0]);
        assert!(starts_a_keyframe(codecs[0], &viewer.packet().await.payload));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loaded_size_and_seed_are_those_of_the_next_session() {
    let (_nats, cell, gateway) = ready(|_| {}).await;
    let load = json!({"pipeline_ids": ["tiny"], "load_params": {"height": 128, "width": 192, "seed": 5}});
    assert_eq!(gateway.post("/api/v1/pipeline/load", &load).await.0, 200);
    let viewer = Viewer::connect(&gateway.url, Wish::default()).await.unwrap();
    let created = cell.seen(viewer.id, "created", |session| session.created.clone()).await;
    assert_eq!(created.size.unwrap().to_string(), "192x128");
    assert_eq!(created.parameters.base_seed, Some(5));
    assert_eq!(created.parameters.prompts.unwrap()[0].text, "a fox");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_cannot_be_used_is_refused_and_starts_nothing() {
    let (_nats, cell, gateway) = ready(|_| {}).await;
    let good = Viewer::offer_body(&Wish::default()).await;
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body
    };
    let sdp = good["sdp"].as_str().unwrap();
    let refusals = [
        (with("sdp", json!("v=0\r\nnonsense")), 400, "bad_sdp"),
        (with("sdp", json!("")), 400, "bad_sdp"),
        (with("sdp", json!(sdp.replace("a=ice-ufrag", "a=x-ufrag"))), 400, "bad_sdp"),
        (with("sdp", json!(sdp.replace("VP8", "VP9"))), 400, "no_common_codec"),
        (with("type", json!("answer")), 400, "bad_sdp"),
        (with("sdp", json!("x".repeat(40_000))), 413, "payload_too_large"),
        (with("padding", json!("x".repeat(70_000))), 413, "payload_too_large"),
        (with("initialParameters", json!({"noise_scale": 2})), 422, "bad_field"),
        (with("initialParameters", json!({"prompts": ["a fox"]})), 422, "bad_field"),
        (with("initialParameters", json!({"denoising_step_list": [500, 750]})), 422, "bad_steps"),
        (with("initialParameters", json!({"vace_ref_images": ["a.png"]})), 400, "unsupported_parameter"),
        (with("initialParameters", json!({"pipeline_ids": ["longlive"]})), 400, "unsupported_model"),
        (
            with("initialParameters", json!({"graph": {"nodes": [{"id": "a", "pipeline_id": "longlive"}]}})),
            400,
            "unsupported_model",
        ),
        (json!({"type": "offer"}), 422, "malformed"),
    ];
    for (body, status, reason) in refusals {
        let (answered, error) = gateway.post("/api/v1/webrtc/offer", &body).await;
        assert_eq!((answered, &error["error"]["reason"]), (status, &json!(reason)), "{error}");
        assert!(error["detail"].is_string() || error["detail"].is_array());
    }
    let (_, error) =
        gateway.post("/api/v1/webrtc/offer", &with("initialParameters", json!({"noise_scale": 2}))).await;
    assert_eq!(error["detail"][0]["loc"], json!(["body", "initialParameters", "noise_scale"]));
    let text = gateway.http.post(gateway.url.clone() + "/api/v1/webrtc/offer").body("{");
    assert_eq!(answer(text).await.0, 422);
    assert_eq!(cell.session_count(), 0);
    Viewer::connect(&gateway.url, Wish::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_sessions_are_in_use_the_next_is_told_when_to_come_back() {
    let (_nats, _cell, gateway) = ready(|config| config.gateway.max_sessions = 1).await;
    let viewer = Viewer::connect(&gateway.url, Wish::default()).await.unwrap();
    let body = Viewer::offer_body(&Wish::default()).await;
    let response =
        gateway.http.post(gateway.url.clone() + "/api/v1/webrtc/offer").json(&body).send().await.unwrap();
    assert_eq!(response.status(), 429);
    assert!(response.headers().contains_key("retry-after"));
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["reason"], "too_many_sessions");
    assert_eq!(gateway.delete(&format!("/api/v1/webrtc/offer/{}", viewer.id)).await, 204);
    Viewer::connect(&gateway.url, Wish::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_before_the_cell_is_ready_is_a_503_with_retry_after() {
    let nats = Nats::start();
    let gateway = Gateway::start(&nats, |_| {}).await;
    let body = Viewer::offer_body(&Wish::default()).await;
    let response =
        gateway.http.post(gateway.url.clone() + "/api/v1/webrtc/offer").json(&body).send().await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
}
