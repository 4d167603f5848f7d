//! `/live`, `/ready` and `/metrics` over a real socket.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use runtime::config::HttpSection;
use runtime::metrics::Metrics;
use runtime::{HealthServer, Readiness, http, metric_names};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_service_says_what_it_waits_for_until_it_is_ready() {
    let readiness = Readiness::waiting_for("loading");
    let metrics = Metrics::install("test").unwrap();
    let server = HealthServer::bind(&HttpSection::default()).await.unwrap();
    let address = server.address();
    let stop = CancellationToken::new();
    let router = http::health_router(readiness.clone(), metrics);
    let serving = tokio::spawn(server.serve(router, stop.clone()));

    assert!(get(address, "/live").await.starts_with("HTTP/1.1 200"));
    let waiting = get(address, "/ready").await;
    assert!(waiting.starts_with("HTTP/1.1 503"), "{waiting}");
    assert!(waiting.ends_with(r#"{"ready":false,"waiting_for":"loading"}"#), "{waiting}");
    readiness.set_ready();
    let ready = get(address, "/ready").await;
    assert!(ready.starts_with("HTTP/1.1 200") && ready.ends_with(r#"{"ready":true}"#), "{ready}");

    metrics::counter!(metric_names::CHUNKS, "outcome" => "ok").increment(3);
    let text = get(address, "/metrics").await;
    assert!(text.contains(r#"km_chunks_total{service="test",outcome="ok"} 3"#), "{text}");

    let taken = HealthServer::bind(&HttpSection { port: address.port(), ..HttpSection::default() }).await;
    assert!(taken.unwrap_err().message.contains(&address.to_string()));
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), serving).await.unwrap().unwrap().unwrap();
}
