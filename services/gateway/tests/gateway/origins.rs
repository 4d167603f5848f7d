use serde_json::json;
use webrtc_viewer::{Viewer, Wish};

use crate::harness::cell::Cell;
use crate::harness::nats::Nats;
use crate::harness::{Gateway, answer};

const SEED: &str = r#"{"base_seed": 7}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_web_page_steers_nothing() {
    let nats = Nats::start();
    let cell = Cell::start(&nats).await;
    let gateway = Gateway::start(&nats, |_| {}).await;
    gateway.ready().await;
    let viewer = Viewer::connect(&gateway.url, Wish::default()).await.unwrap();
    let parameters = gateway.url.clone() + "/api/v1/session/parameters";
    let post = |origin: &str| gateway.http.post(&parameters).header("origin", origin).body(SEED);

    for origin in ["https://evil.example", "null", "http://localhost.evil.example:1"] {
        let (status, error) = answer(post(origin)).await;
        assert_eq!((status, &error["error"]["reason"]), (403, &json!("foreign_origin")), "{error}");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(origin) && message.contains("gateway.allowed_origins"), "{message}");
        let read = gateway.http.get(&parameters).header("origin", origin).send().await.unwrap();
        assert_eq!(read.status(), 403);
        let hang_up = gateway.url.clone() + &format!("/api/v1/webrtc/offer/{}", viewer.id);
        assert_eq!(answer(gateway.http.delete(hang_up).header("origin", origin)).await.0, 403);
    }
    assert_eq!(cell.now(viewer.id, |session| session.updates.len()), Some(0));

    for origin in [gateway.url.as_str(), "http://localhost:5173"] {
        let response = post(origin).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["access-control-allow-origin"], origin);
        assert_eq!(response.headers()["access-control-allow-credentials"], "true");
    }
    assert_eq!(answer(gateway.http.post(&parameters).body(SEED)).await.0, 200, "no browser sent it");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_allowed_pages_are_told_that_they_may_read() {
    let nats = Nats::start();
    let studio = |config: &mut gateway::Config| {
        config.gateway.allowed_origins = vec!["https://studio.example".to_owned()];
    };
    let listed = Gateway::start(&nats, studio).await;
    let open = Gateway::start(&nats, |config| config.gateway.allowed_origins = vec!["*".to_owned()]).await;
    let get = async |gateway: &Gateway, origin: &str| {
        let request = gateway.http.get(gateway.url.clone() + "/health").header("origin", origin);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let header =
            |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        (header("access-control-allow-origin"), header("access-control-allow-credentials"))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(get(&listed, "https://studio.example").await, (some("https://studio.example"), some("true")));
    assert_eq!(get(&listed, "https://evil.example").await, (None, None));
    assert_eq!(get(&listed, "http://localhost:5173").await, (None, None), "a list replaces the default");
    assert_eq!(get(&open, "https://evil.example").await, (some("*"), None));

    let offer = |gateway: &Gateway| gateway.url.clone() + "/api/v1/webrtc/offer";
    let preflight = |gateway: &Gateway, origin: &str| {
        let request = gateway.http.request(reqwest::Method::OPTIONS, offer(gateway));
        request
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .send()
    };
    let allowed = preflight(&listed, "https://studio.example").await.unwrap();
    assert_eq!(allowed.status(), 200);
    assert_eq!(allowed.headers()["access-control-allow-headers"], "authorization,content-type");
    assert_eq!(preflight(&listed, "https://evil.example").await.unwrap().status(), 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_loopback_a_name_that_someone_else_gave_it_is_refused() {
    let nats = Nats::start();
    let gateway = Gateway::start(&nats, |_| {}).await;
    let named = async |gateway: &Gateway, path: &str, host: &str| {
        answer(gateway.http.get(gateway.url.clone() + path).header("host", host)).await
    };
    for path in ["/", "/metrics", "/api/v1/cell"] {
        let (status, error) = named(&gateway, path, "evil.example:8000").await;
        assert_eq!((status, &error["error"]["reason"]), (403, &json!("foreign_host")), "{error}");
        assert!(error["detail"].as_str().unwrap().contains("evil.example:8000"), "{error}");
        assert_eq!(named(&gateway, path, "localhost:8000").await.0, 200);
    }
    let proxied = Gateway::start(&nats, |config| {
        config.gateway.allowed_origins = vec!["https://studio.example".to_owned()];
    })
    .await;
    assert_eq!(named(&proxied, "/api/v1/cell", "studio.example").await.0, 200);
    let public = Gateway::start(&nats, |config| config.common.http.bind = "0.0.0.0".to_owned()).await;
    let port = public.url.rsplit_once(':').unwrap().1;
    let url = format!("http://127.0.0.1:{port}/api/v1/cell");
    assert_eq!(answer(public.http.get(url).header("host", "box.example")).await.0, 200);
}
