//! The document and the router say the same, and the committed document is the generated one.

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use runtime::metrics::Metrics;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{api, openapi_json, router};
use crate::app::App;
use crate::config::Config;

fn gateway() -> Router {
    static METRICS: std::sync::OnceLock<Metrics> = std::sync::OnceLock::new();
    let metrics = METRICS.get_or_init(|| Metrics::install("gateway").unwrap()).clone();
    router(App::new(Config::default(), metrics, CancellationToken::new()).unwrap())
}

async fn answer(router: &Router, method: Method, path: &str, body: &str) -> (StatusCode, String) {
    let request = Request::builder().method(method).uri(path).body(Body::from(body.to_owned())).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    if response.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream") {
        return (status, String::new());
    }
    let body = axum::body::to_bytes(response.into_body(), 1 << 22).await.unwrap();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[test]
fn the_committed_document_is_the_generated_one() {
    let generated = openapi_json().unwrap();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    if std::env::var_os("KINEMESH_UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "openapi.json is not up to date: run this test with KINEMESH_UPDATE_OPENAPI=1"
    );
}

#[tokio::test]
async fn every_documented_operation_is_routed_and_no_other_method_is() {
    let router = gateway();
    let (_, document) = api().split_for_parts();
    let methods = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    assert!(document.paths.paths.len() > 25);
    for (path, item) in &document.paths.paths {
        let documented = |method: &Method| match *method {
            Method::GET => item.get.is_some(),
            Method::POST => item.post.is_some(),
            Method::PUT => item.put.is_some(),
            Method::PATCH => item.patch.is_some(),
            _ => item.delete.is_some(),
        };
        let concrete = path.replace("{session_id}", "6a0c4a3e-1f55-4d0f-8a2e-3f0c1b6f7a11");
        for method in &methods {
            let (status, body) = answer(&router, method.clone(), &concrete, "{}").await;
            let routed = status != StatusCode::METHOD_NOT_ALLOWED && !body.contains("\"Not Found\"");
            assert_eq!(routed, documented(method), "{method} {path} answers {status}");
        }
    }
}

#[tokio::test]
async fn before_the_broker_is_there_it_is_alive_and_says_what_it_waits_for() {
    let router = gateway();
    assert_eq!(answer(&router, Method::GET, "/live", "").await.0, 200);
    let (status, body) = answer(&router, Method::GET, "/ready", "").await;
    assert_eq!((status.as_u16(), body.as_str()), (503, r#"{"ready":false,"waiting_for":"broker"}"#));
    let (status, body) = answer(&router, Method::GET, "/api/v1/pipeline/status", "").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status.as_u16(), &body["status"]), (200, &serde_json::json!("not_loaded")));
    assert_eq!(body.as_object().unwrap().len(), 8);
}

#[tokio::test]
async fn unknown_pages_are_the_page_and_unknown_api_paths_are_errors() {
    let router = gateway();
    let (status, body) = answer(&router, Method::GET, "/some/page", "").await;
    assert!(status == 200 && body.contains("<!doctype html>"));
    let (status, body) = answer(&router, Method::GET, "/api/v1/nothing", "").await;
    assert!(status == 404 && body.contains(r#""detail":"Not Found""#));
    let (status, body) = answer(&router, Method::POST, "/some/page", "").await;
    assert!(status == 405 && body.contains(r#""detail":"Method Not Allowed""#));
    assert_eq!(answer(&router, Method::GET, "/docs/", "").await.0, 200);
    let (status, body) = answer(&router, Method::GET, "/openapi.json", "").await;
    assert!(status == 200 && body.contains("/api/v1/webrtc/offer"));
}
