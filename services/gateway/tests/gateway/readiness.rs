use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::cell::Cell;
use crate::harness::nats::Nats;
use crate::harness::{Gateway, answer, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn it_is_alive_at_once_and_ready_when_the_cell_is() {
    let nats = Nats::start();
    let gateway = Gateway::start(&nats, |_| {}).await;
    assert_eq!(gateway.get("/live").await.0, 200);
    let waiting = async |wanted: &str| {
        eventually(wanted, async || {
            let (status, body) = gateway.get("/ready").await;
            (status == 503 && body["waiting_for"] == wanted).then_some(())
        })
        .await;
    };
    waiting("mesh: no leader").await;
    let cell = Cell::start(&nats).await;
    gateway.ready().await;
    let (_, state) = gateway.get("/api/v1/cell").await;
    assert_eq!(state["mesh"]["epoch"], 3);
    assert_eq!(state["model"]["examples"], json!(["a red fox in snow", "rain over a harbour"]));
    cell.die();
    waiting("mesh: no leader").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_away_is_named_and_its_return_is_noticed() {
    let mut nats = Nats::start();
    let cell = Cell::start(&nats).await;
    let gateway = Gateway::start(&nats, |_| {}).await;
    gateway.ready().await;
    nats.kill();
    eventually("waiting for the broker", async || {
        (gateway.get("/ready").await.1["waiting_for"] == "broker").then_some(())
    })
    .await;
    assert_eq!(gateway.get("/live").await.0, 200);
    nats.restart();
    gateway.ready().await;
    drop(cell);
}

/// Its statuses go on, so that its silence tells nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage0_of_which_the_broker_knows_nothing_any_more_is_missed_at_once() {
    let nats = Nats::start();
    let cell = Cell::start(&nats).await;
    let gateway = Gateway::start(&nats, |_| {}).await;
    gateway.ready().await;
    let (endpoint, asked) = cell.stage0_is_there().await;
    tokio::time::timeout(Duration::from_secs(10), asked.notified()).await.expect("stage0 is asked");
    drop(endpoint);
    eventually("waiting for stage0", async || {
        let (status, body) = gateway.get("/ready").await;
        (status == 503 && body["waiting_for"] == "stage0").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loading_is_a_check_against_what_the_cell_serves() {
    let nats = Nats::start();
    let _cell = Cell::start(&nats).await;
    let gateway = Gateway::start(&nats, |_| {}).await;
    gateway.ready().await;
    let load = async |body: Value| gateway.post("/api/v1/pipeline/load", &body).await;

    let (status, body) =
        load(json!({"pipeline_ids": ["tiny"], "load_params": {"height": 128, "width": 192}})).await;
    assert_eq!((status, &body["message"]), (200, &json!("Pipeline loading initiated successfully")));
    let (_, state) = gateway.get("/api/v1/pipeline/status").await;
    assert_eq!(
        state,
        json!({"status": "loaded", "pipeline_id": "tiny", "load_params": {"height": 128, "width": 192},
            "loaded_lora_adapters": null, "error": null, "loading_stage": null, "produces_video": true,
            "produces_audio": false})
    );
    let node = json!({"pipelines": [{"node_id": "n1", "pipeline_id": "tiny", "load_params": {}}]});
    assert_eq!(load(node).await.0, 200);
    assert_eq!(gateway.get("/api/v1/pipeline/status").await.1["pipeline_id"], "n1");

    for (body, expected) in [
        (json!({}), "Either 'pipelines' or 'pipeline_ids' must be provided"),
        (json!({"pipeline_ids": ["longlive"]}), "this cell serves \"tiny\" at 128x128, 192x128"),
        (json!({"pipeline_ids": ["tiny"], "load_params": {"height": 512, "width": 512}}), "size 512x512"),
        (json!({"pipeline_ids": ["tiny"], "load_params": {"vace_enabled": true}}), "vace_enabled"),
    ] {
        let (status, answer) = load(body).await;
        assert_eq!(status, 400);
        assert!(answer["detail"].as_str().unwrap().contains(expected), "{answer}");
    }
    let (_, schemas) = gateway.get("/api/v1/pipelines/schemas").await;
    assert_eq!(
        schemas["pipelines"]["tiny"]["config_schema"]["properties"]["width"]["enum"],
        json!([128, 192])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_the_api_is_closed_and_health_stays_open() {
    let nats = Nats::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret\n").unwrap();
    let path = file.path().to_owned();
    let gateway = Gateway::start(&nats, |config| config.gateway.token_file = Some(path)).await;
    let (status, body) = gateway.get("/api/v1/pipeline/status").await;
    assert_eq!((status, &body["error"]["reason"]), (401, &json!("bad_token")));
    assert_eq!(gateway.get("/health").await.0, 200);
    let url = gateway.url.clone() + "/api/v1/pipeline/status";
    let with = gateway.http.get(&url).header("authorization", "Bearer s3cret");
    assert_eq!(answer(with).await.0, 200);
    let wrong = gateway.http.get(&url).header("authorization", "Bearer s3creT");
    assert_eq!(answer(wrong).await.0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_found_as_a_service_and_leaves_in_time() {
    let nats = Nats::start();
    let gateway = Gateway::start(&nats, |_| {}).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let info: Value = eventually("$SRV.INFO.gateway answers", async || {
        let asked = client.request("$SRV.INFO.gateway", "".into());
        let answer = tokio::time::timeout(Duration::from_secs(1), asked).await.ok()?.ok()?;
        serde_json::from_slice(&answer.payload).ok()
    })
    .await;
    assert_eq!(info["name"], "gateway");
    assert!(matches!(gateway.stop().await, runtime::Outcome::Stopped));
}
