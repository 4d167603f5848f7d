//! Is it alive, is it ready, and what is it.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use contract::model::ModelInfo;
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use crate::BUILD;
use crate::app::App;

#[derive(Serialize, ToSchema)]
pub(super) struct Live {
    live: bool,
}

/// Depends on nothing remote.
#[utoipa::path(get, path = "/live", tag = "health", responses((status = 200, body = Live)))]
pub(super) async fn live() -> Json<Live> {
    Json(Live { live: true })
}

#[derive(Serialize, ToSchema)]
pub(super) struct Ready {
    ready: bool,
    /// What is waited for: `broker`, `mesh: warming 2/3`, `stage0`.
    waiting_for: Option<String>,
}

/// Whether a session can be started: broker, mesh with its canary, stage0.
#[utoipa::path(get, path = "/ready", tag = "health",
    responses((status = 200, body = Ready), (status = 503, body = Ready, description = "names what is waited for")))]
pub(super) async fn ready(State(app): State<App>) -> Response {
    let snapshot = app.cell().now();
    let draining = app.stop().is_cancelled();
    if snapshot.ready() && !draining {
        return Json(Ready { ready: true, waiting_for: None }).into_response();
    }
    let waiting_for = if draining { Some("shutdown".to_owned()) } else { snapshot.waiting_for };
    let body = Json(Ready { ready: false, waiting_for });
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], body).into_response()
}

#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    #[schema(example = "healthy")]
    status: &'static str,
    timestamp: String,
    /// Seconds since 1970; a change tells clients of a restart.
    server_start_time: f64,
    version: &'static str,
    git_commit: &'static str,
}

/// In the form that existing clients expect; answers always.
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, body = Health)))]
pub(super) async fn health(State(app): State<App>) -> Json<Health> {
    let now = i128::from(runtime::clock::unix_millis()) * 1_000_000;
    let timestamp =
        OffsetDateTime::from_unix_timestamp_nanos(now).ok().and_then(|now| now.format(&Rfc3339).ok());
    Json(Health {
        status: "healthy",
        timestamp: timestamp.unwrap_or_default(),
        server_start_time: app.identity().started_unix_ms as f64 / 1000.0,
        version: BUILD,
        git_commit: option_env!("KINEMESH_GIT_COMMIT").unwrap_or("unknown"),
    })
}

/// Prometheus text.
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(app): State<App>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics().render()).into_response()
}

/// For shells that poll the API's own path.
#[utoipa::path(get, path = "/api/v1/health", tag = "health", responses((status = 200, body = Health)))]
pub(super) async fn api_health(state: State<App>) -> Json<Health> {
    health(state).await
}

/// What the page shows about the cell.
#[derive(Serialize, ToSchema)]
pub(super) struct CellState {
    cell: String,
    /// Of this life of the gateway: sessions of another one are gone.
    instance: String,
    ready: bool,
    waiting_for: Option<String>,
    /// Name, sizes, default steps and bias, example prompts; absent until a process of the cell has told.
    #[schema(value_type = Option<Value>)]
    model: Option<Value>,
    mesh: Option<Mesh>,
    sessions: usize,
    max_sessions: usize,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Mesh {
    #[schema(example = "ready")]
    state: &'static str,
    epoch: Option<u64>,
    world_size: u32,
    last_fault: Option<String>,
}

/// The cell as this gateway sees it.
#[utoipa::path(get, path = "/api/v1/cell", tag = "health", responses((status = 200, body = CellState)))]
pub(super) async fn cell(State(app): State<App>) -> Json<CellState> {
    let snapshot = app.cell().now();
    let own = app.config().gateway.max_sessions;
    let of_stage0 =
        snapshot.stage0.as_ref().and_then(|(_, status)| status.as_ref()?.capacity.try_into().ok());
    let limit = of_stage0.map_or(own, |capacity: usize| capacity.min(own));
    Json(CellState {
        cell: app.config().common.cell.id.to_string(),
        instance: app.identity().instance.to_string(),
        ready: snapshot.ready(),
        waiting_for: snapshot.waiting_for,
        model: snapshot.model.as_ref().map(describe),
        mesh: snapshot.mesh.map(|mesh| Mesh {
            state: mesh.phase.as_str(),
            epoch: mesh.epoch.map(|epoch| epoch.0),
            world_size: mesh.world_size.get(),
            last_fault: mesh.last_fault.map(|fault| fault.what),
        }),
        sessions: app.sessions().all().len(),
        max_sessions: limit,
    })
}

fn describe(model: &ModelInfo) -> Value {
    json!({
        "name": model.name, "sizes": model.sizes, "default_steps": model.default_steps,
        "default_attention_bias": model.default_attention_bias,
        "supports_kv_cache_bias": model.recompute, "examples": model.examples,
    })
}
