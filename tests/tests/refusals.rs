//! What cannot be served is refused to the one who asked, by name, and changes nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::time::Duration;

use contract::Reason;
use contract::session::Control;
use serde_json::{Value, json};
use system_tests::http::{Answer, Http};
use system_tests::{Cell, Viewer, python, wait};

const OFFER: &str = "/api/v1/webrtc/offer";

/// A minimal recvonly video offer with these `a=rtpmap` codecs.
fn sdp(codecs: &[(u8, &str)]) -> String {
    let types: Vec<_> = codecs.iter().map(|(number, _)| number.to_string()).collect();
    let maps: String =
        codecs.iter().map(|(number, name)| format!("a=rtpmap:{number} {name}/90000\r\n")).collect();
    let fingerprint = vec!["AB"; 32].join(":");
    format!(
        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n\
         m=video 9 UDP/TLS/RTP/SAVPF {}\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=recvonly\r\na=rtcp-mux\r\n{maps}\
         a=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuvwx\r\na=setup:actpass\r\n\
         a=fingerprint:sha-256 {fingerprint}\r\n",
        types.join(" ")
    )
}

async fn offer(http: &Http, sdp: &str, parameters: Value) -> Answer {
    http.post(OFFER, &json!({"sdp": sdp, "type": "offer", "initialParameters": parameters})).await
}

fn assert_refused(answer: &Answer, status: u16, names: &[&str]) {
    assert_eq!(answer.status, status, "{}", answer.text);
    for name in names {
        assert!(answer.text.contains(name), "{name} should be named: {}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_request_is_named_to_its_sender_and_the_cell_still_serves() {
    let cell = Cell::builder().ready().await;
    let http = cell.http();
    let vp8 = sdp(&[(96, "VP8")]);

    assert_refused(&offer(&http, "v=0\r\nhello", json!({})).await, 400, &["bad_sdp"]);
    assert_refused(&offer(&http, "", json!({})).await, 400, &["bad_sdp"]);
    assert_refused(&offer(&http, &sdp(&[(96, "AV1")]), json!({})).await, 400, &["no_common_codec", "VP8"]);
    assert_refused(&offer(&http, &vp8, json!({"noise_scale": 2})).await, 422, &["noise_scale", "2"]);
    assert_refused(&offer(&http, &vp8, json!({"prompts": ["a fox"]})).await, 422, &["prompts", "a fox"]);
    assert_refused(
        &offer(&http, &vp8, json!({"vace_ref_images": ["a.png"]})).await,
        400,
        &["unsupported", "vace_ref_images"],
    );
    let answer = offer(&http, &vp8, json!({"denoising_step_list": [250, 1000]})).await;
    assert_refused(&answer, 422, &["denoising", "[250, 1000]"]);
    let big = "x".repeat(2_000_000);
    assert_refused(&offer(&http, &big, json!({})).await, 413, &[]);
    let load = json!({"pipeline_ids": ["tiny"], "load_params": {"width": 333, "height": 222}});
    assert_refused(&http.post("/api/v1/pipeline/load", &load).await, 400, &["333", "128x128"]);
    let load = json!({"pipeline_ids": ["no-such-model"]});
    assert_refused(&http.post("/api/v1/pipeline/load", &load).await, 400, &["no-such-model", "tiny"]);
    let answer = http.post("/api/v1/session/parameters", &json!({"base_seed": -1})).await;
    assert_refused(&answer, 422, &["base_seed", "-1"]);

    assert_refused(&http.get("/api/v1/session/frame").await, 404, &["no session is running"]);

    let seen =
        python::run("webrtc_view.py", &["--url", &cell.url(), "--frames", "20"], Duration::from_secs(90))
            .await;
    assert_eq!(seen["frames"], 20, "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_update_on_the_data_channel_is_answered_there_and_the_video_goes_on() {
    let cell = Cell::builder().ready().await;
    for (update, class, name) in [
        (r#"{"noise_scale": 2}"#, "invalid_argument", "noise_scale"),
        (r#"{"prompts": "a fox"}"#, "invalid_argument", "prompts"),
        (r#"{"vace_ref_images": ["a.png"]}"#, "unsupported", "vace_ref_images"),
        (r#"{"height": 320}"#, "unsupported", "height"),
        ("not json", "invalid_argument", "JSON"),
    ] {
        let args = ["--url", &cell.url(), "--frames", "15", "--send", update, "--delete"];
        let seen = python::run("webrtc_view.py", &args, Duration::from_secs(90)).await;
        assert_eq!(seen["frames"], 15, "{seen}");
        let messages = seen["messages"].as_array().unwrap();
        let error = messages.iter().find(|message| message["type"] == "error").expect("an error message");
        assert_eq!(error["error"]["class"], class, "{error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(name), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_has_made_no_frame_yet_has_none_to_show() {
    let cell = Cell::builder().ready().await;
    let bus = cell.bus("gateway").await;
    let parameters = json!({"prompts": [{"text": "a red fox"}], "paused": true});
    let viewer = Viewer::open(&bus, &cell.id(), &parameters).await;
    let error = viewer.control(Control::Frame { quality: 80 }).await.err().unwrap();
    assert_eq!((error.reason, error.class().http_status()), (Reason::NoSuchResource, 404));
    viewer.control(Control::Pause { paused: false }).await.unwrap();
    let shown = || async { viewer.control(Control::Frame { quality: 80 }).await.ok() };
    wait::until("a frame", Duration::from_secs(20), shown).await;
    viewer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_world_size_that_cannot_shard_the_model_ends_the_leader_and_disturbs_nobody() {
    let mut cell = Cell::builder().ready().await;
    cell.start_beside(
        "leader3",
        "leader",
        &[("KINEMESH_MESH__WORLD_SIZE", "3"), ("KINEMESH_HTTP__PORT", "0")],
    );
    let end = cell.exit("leader3", Duration::from_secs(30)).await;
    assert_eq!(end.code(), Some(2), "a configuration that cannot be used");
    let printed = cell.printed("leader3");
    for name in ["mesh.world_size", "3", "1, 2, 4"] {
        assert!(printed.contains(name), "{name} should be named: {printed}");
    }
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &json!({"prompts": [{"text": "a red fox"}]})).await;
    viewer.chunk().await;
    viewer.end().await;
}
