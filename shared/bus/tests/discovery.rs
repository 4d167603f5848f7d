//! What a stranger sees: ADR-32 discovery, JSON operations, error headers.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod harness;

use async_nats::{Client, HeaderMap, Message};
use contract::{Error, Reason};
use harness::{Broker, info, within};
use serde_json::{Value, json};

async fn ask(client: &Client, subject: &str) -> Value {
    let reply = client.request(subject.to_owned(), "".into()).await.unwrap();
    serde_json::from_slice(&reply.payload).unwrap()
}

fn header(message: &Message, name: &str) -> String {
    message.headers.as_ref().unwrap().get(name).unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_discovered_with_its_endpoints_and_their_statistics() {
    let broker = Broker::start();
    let bus = broker.bus("service").await;
    let service = bus.service(info("kinemesh-stage0")).await.unwrap();
    let create = service.serve("create", "t.create", 1, |_, n: u32| async move { Ok(n + 1) }).await.unwrap();
    let stranger = broker.stranger().await;

    let ping = ask(&stranger, "$SRV.PING").await;
    assert_eq!(ping["type"], "io.nats.micro.v1.ping_response");
    assert_eq!((&ping["name"], &ping["id"]), (&json!("kinemesh-stage0"), &json!(service.id())));
    assert_eq!(ping["metadata"]["cell"], "cell0");

    let found = ask(&stranger, &format!("$SRV.INFO.kinemesh-stage0.{}", service.id())).await;
    assert_eq!(found["type"], "io.nats.micro.v1.info_response");
    let endpoint = json!({ "name": "create", "subject": "t.create", "queue_group": "", "metadata": {} });
    assert_eq!(found["endpoints"], json!([endpoint]));

    assert_eq!(bus.request::<_, u32>("t.create", &1_u32, within(2_000)).await.unwrap(), 2);
    bus.request::<_, u32>("t.create", &"x", within(2_000)).await.unwrap_err();
    let stats = ask(&stranger, "$SRV.STATS.kinemesh-stage0").await;
    let endpoint = &stats["endpoints"][0];
    assert_eq!((&endpoint["num_requests"], &endpoint["num_errors"]), (&json!(2), &json!(1)));
    assert!(endpoint["last_error"].as_str().unwrap().starts_with("400:invalid_argument: malformed"));

    create.stop().await;
    let gone = bus.request::<_, u32>("t.create", &1_u32, within(2_000)).await.unwrap_err();
    assert_eq!(gone.reason, Reason::NoResponders);
    assert_eq!(ask(&stranger, "$SRV.INFO").await["endpoints"], json!([]));
    // It can come back under the same subject.
    let _again = service.serve("create", "t.create", 1, |_, n: u32| async move { Ok(n + 2) }).await.unwrap();
    assert_eq!(bus.request::<_, u32>("t.create", &1_u32, within(2_000)).await.unwrap(), 3);
    service.stop().await;
    harness::eventually("the service is gone", async || {
        let asked = stranger.request("$SRV.PING", "".into()).await;
        asked.is_err_and(|e| e.kind() == async_nats::RequestErrorKind::NoResponders)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_speak_json_and_refuse_with_headers_and_a_json_body() {
    let broker = Broker::start();
    let bus = broker.bus("service").await;
    let service = bus.service(info("ops")).await.unwrap();
    let _status = service
        .serve_json("status", "t.ops.status", 1, |_, nothing: Option<Value>| async move {
            Ok(json!({ "state": "ready", "asked": nothing }))
        })
        .await
        .unwrap();
    let _reset = service
        .serve_json("reset", "t.ops.reset", 1, |_, _: Value| async {
            Err::<(), _>(Error::new(Reason::Draining, "the cell is draining").detail("since 10 s"))
        })
        .await
        .unwrap();
    let stranger = broker.stranger().await;
    assert_eq!(ask(&stranger, "t.ops.status").await, json!({ "state": "ready", "asked": null }));

    let refused = stranger.request("t.ops.reset", "{}".into()).await.unwrap();
    assert_eq!(header(&refused, "Nats-Service-Error-Code"), "503");
    assert_eq!(header(&refused, "Nats-Service-Error"), "unavailable: draining: the cell is draining");
    let body: Value = serde_json::from_slice(&refused.payload).unwrap();
    assert_eq!((&body["reason"], &body["detail"]), (&json!("draining"), &json!("since 10 s")));

    let malformed = stranger.request("t.ops.reset", "{".into()).await.unwrap();
    assert_eq!(header(&malformed, "Nats-Service-Error-Code"), "400");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_contract_version_and_a_malformed_budget_are_refused_by_name() {
    let broker = Broker::start();
    let bus = broker.bus("service").await;
    let service = bus.service(info("strict")).await.unwrap();
    let _endpoint = service.serve("x", "t.x", 1, |_, (): ()| async { Ok(()) }).await.unwrap();
    let stranger = broker.stranger().await;
    for (name, value, code) in [("Km-Contract", "99", "400"), ("Km-Budget-Ms", "soon", "400")] {
        let mut headers = HeaderMap::new();
        headers.insert(name, value);
        let reply = stranger.request_with_headers("t.x", headers, vec![0xc0].into()).await.unwrap();
        assert_eq!(header(&reply, "Nats-Service-Error-Code"), code);
        assert!(header(&reply, "Nats-Service-Error").contains(value));
    }
    // Neither header at all: a stranger is served.
    let reply = stranger.request("t.x", vec![0xc0].into()).await.unwrap();
    assert!(reply.headers.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_adr_32_does_not_allow_are_refused() {
    let broker = Broker::start();
    let bus = broker.bus("service").await;
    for (name, version) in [("stage 0", "0.1.0"), ("stage0", "latest")] {
        let mut wrong = info(name);
        wrong.version = version.to_owned();
        assert_eq!(bus.service(wrong).await.err().unwrap().reason, Reason::BadField);
    }
}
