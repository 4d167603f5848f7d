//! `/live`, `/ready` and `/metrics`.

use std::net::SocketAddr;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{ConfigError, HttpSection};
use crate::metrics::Metrics;

/// Whether the service can do its work, or what it waits for. Clones are the same.
#[derive(Clone, Debug)]
pub struct Readiness(watch::Sender<Option<String>>);

impl Readiness {
    /// Not ready, and what it waits for: `broker`, `loading`, `warming 2/3`.
    pub fn waiting_for(what: impl Into<String>) -> Self {
        Self(watch::Sender::new(Some(what.into())))
    }

    pub fn set_waiting(&self, what: impl Into<String>) {
        self.set(Some(what.into()));
    }

    pub fn set_ready(&self) {
        self.set(None);
    }

    fn set(&self, waiting: Option<String>) {
        self.0.send_if_modified(|now| {
            let changed = *now != waiting;
            *now = waiting;
            changed
        });
    }

    /// What it waits for; `None` when ready.
    #[must_use]
    pub fn waiting(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    /// Sees each change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<String>> {
        self.0.subscribe()
    }
}

/// `/live`: 200 while the process serves HTTP, nothing remote is asked. `/ready`: 200 or 503, with
/// `{"ready": false, "waiting_for": "..."}`. `/metrics`: Prometheus text.
pub fn health_router(readiness: Readiness, metrics: Metrics) -> Router {
    Router::new()
        .route("/live", get(live))
        .route("/ready", get(ready).with_state(readiness))
        .route("/metrics", get(render).with_state(metrics))
}

async fn live() -> Json<serde_json::Value> {
    Json(json!({ "live": true }))
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    match readiness.waiting() {
        None => Json(json!({ "ready": true })).into_response(),
        Some(what) => {
            let body = Json(json!({ "ready": false, "waiting_for": what }));
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], body).into_response()
        }
    }
}

async fn render(State(metrics): State<Metrics>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()).into_response()
}

/// A bound HTTP listener.
#[derive(Debug)]
pub struct HealthServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl HealthServer {
    /// Binds to `http.bind`:`http.port`; port 0 picks a free one.
    ///
    /// # Errors
    /// The address cannot be bound, naming it and its keys.
    pub async fn bind(http: &HttpSection) -> Result<Self, ConfigError> {
        let wanted = format!("{}:{}", http.bind, http.port);
        let refused =
            |e| ConfigError::new("http.bind", format!("cannot listen on {wanted} (http.port): {e}"));
        let listener = TcpListener::bind((http.bind.as_str(), http.port)).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Self { listener, address })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `router` until `stop`; then takes no new connection and ends when the open ones have.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn serve(self, router: Router, stop: CancellationToken) -> std::io::Result<()> {
        tracing::info!(address = %self.address, "http listening");
        axum::serve(self.listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}
