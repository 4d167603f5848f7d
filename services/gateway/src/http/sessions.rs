//! Steering and watching running sessions without WebRTC.
#![allow(unused_qualifications, reason = "the path macro repeats the query's type")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use contract::params::Parameters;
use contract::session::{Control, ControlReply};
use contract::{Error, Reason};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::body::JsonBody;
use crate::app::App;
use crate::error::{ApiError, ErrorBody};
use crate::session::{Command, Handle};

#[derive(Serialize, ToSchema)]
pub(super) struct Applied {
    #[schema(example = "ok")]
    status: &'static str,
    applied_parameters: Parameters,
}

/// Applies what is sent, and only that, to every session; their clients are told.
#[utoipa::path(post, path = "/api/v1/session/parameters", tag = "session", request_body = Parameters,
    responses((status = 200, body = Applied), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 422, body = ErrorBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
pub(super) async fn set_parameters(
    State(app): State<App>,
    body: JsonBody<Value>,
) -> Result<Json<Applied>, ApiError> {
    let parameters = Parameters::from_json(&body.raw)
        .map_err(|error| ApiError::parameters(error, &["body"], &body.raw))?;
    if parameters.is_empty() {
        return Err(ApiError::new(Reason::BadField, "No parameters provided"));
    }
    let sessions = app.sessions().all();
    if sessions.is_empty() {
        return Err(none_running());
    }
    let updates = sessions.iter().map(|session| update(session, &parameters));
    let outcomes = join_all(updates).await;
    // One session that took them is enough: the others end, or tell their own clients.
    if !outcomes.iter().any(Result::is_ok)
        && let Some(Err(error)) = outcomes.into_iter().next()
    {
        return Err(error.into());
    }
    Ok(Json(Applied { status: "ok", applied_parameters: parameters }))
}

async fn update(session: &Arc<Handle>, parameters: &Parameters) -> Result<(), Error> {
    let accepted = session.line.update(parameters.clone()).await?;
    session.shared.accepted(parameters.clone(), accepted.update);
    let _ = session.commands.try_send(Command::ParametersUpdated(Box::new(parameters.clone())));
    Ok(())
}

#[derive(Serialize, ToSchema)]
pub(super) struct Current {
    parameters: Parameters,
}

/// The oldest session's parameters; `{}` when none runs.
#[utoipa::path(get, path = "/api/v1/session/parameters", tag = "session", responses((status = 200, body = Current)))]
pub(super) async fn parameters(State(app): State<App>) -> Json<Current> {
    let parameters =
        app.sessions().all().first().map(|session| session.shared.parameters()).unwrap_or_default();
    Json(Current { parameters })
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct FrameQuery {
    /// 1 to 100.
    #[param(value_type = Option<u8>)]
    quality: Option<String>,
    /// Absent: the oldest session.
    session_id: Option<String>,
}

/// The latest frame as JPEG.
#[utoipa::path(get, path = "/api/v1/session/frame", tag = "session", params(FrameQuery),
    responses((status = 200, content_type = "image/jpeg", body = Vec<u8>), (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
pub(super) async fn frame(State(app): State<App>, query: Query<FrameQuery>) -> Result<Response, ApiError> {
    let quality = match query.quality.as_deref() {
        None => 85,
        Some(text) => {
            text.parse::<u8>().ok().filter(|quality| (1..=100).contains(quality)).ok_or_else(|| {
                let error = Error::new(Reason::BadField, format!("quality is {text:?}: 1 to 100 is allowed"));
                ApiError::schema(error, &["query", "quality"], &json!(text))
            })?
        }
    };
    let session = match query.0.session_id {
        Some(id) => app.sessions().get(&id)?,
        None => app.sessions().all().into_iter().next().ok_or_else(none_running)?,
    };
    match session.line.control(&Control::Frame { quality }).await? {
        ControlReply::Frame { jpeg, .. } => {
            Ok(([(header::CONTENT_TYPE, "image/jpeg")], jpeg).into_response())
        }
        ControlReply::Done | ControlReply::Watching { .. } => {
            Err(ApiError::new(Reason::Malformed, "stage0 answered something else"))
        }
    }
}

fn none_running() -> ApiError {
    ApiError::new(Reason::NoSuchSession, "no session is running")
}

#[derive(Serialize, ToSchema)]
pub(super) struct Metrics {
    sessions: BTreeMap<String, SessionMetrics>,
    /// The gateway has none.
    #[schema(value_type = Value)]
    gpu: Value,
}

#[derive(Serialize, ToSchema)]
pub(super) struct SessionMetrics {
    frames_in: u64,
    frames_out: u64,
    elapsed_seconds: f64,
    fps_in: f64,
    fps_out: f64,
    /// Frames a second that the model makes.
    pipeline_fps: Option<f32>,
    #[schema(value_type = Value)]
    output_sinks: Value,
    input_source_enabled: bool,
    input_source_type: Option<String>,
    relay_mode: bool,
    #[schema(example = "streaming")]
    state: Option<&'static str>,
    #[schema(example = "128x128")]
    size: String,
    bytes_out: u64,
    bitrate_kbps: u64,
    /// Gaps on the way from stage0, and frames dropped because of them.
    gaps: u64,
    dropped_frames: u64,
    last_error: Option<String>,
}

/// Counters of every session.
#[utoipa::path(get, path = "/api/v1/session/metrics", tag = "session", responses((status = 200, body = Metrics)))]
pub(super) async fn metrics(State(app): State<App>) -> Json<Metrics> {
    let sessions =
        app.sessions().all().into_iter().map(|session| (session.id.to_string(), describe(&session)));
    Json(Metrics { sessions: sessions.collect(), gpu: json!({}) })
}

fn describe(session: &Handle) -> SessionMetrics {
    let shared = &session.shared;
    let elapsed = shared.started.elapsed().as_secs_f64();
    let frames = shared.frames_out.load(Ordering::Relaxed);
    let (state, error) = shared.state();
    SessionMetrics {
        frames_in: 0,
        frames_out: frames,
        elapsed_seconds: elapsed,
        fps_in: 0.0,
        fps_out: if elapsed > 0.0 { frames as f64 / elapsed } else { 0.0 },
        pipeline_fps: shared.last_chunk().map(|chunk| chunk.fps),
        output_sinks: json!({}),
        input_source_enabled: false,
        input_source_type: None,
        relay_mode: false,
        state: state.map(contract::event::SessionState::as_str),
        size: shared.size.to_string(),
        bytes_out: shared.bytes_out.load(Ordering::Relaxed),
        bitrate_kbps: shared.kbps.load(Ordering::Relaxed),
        gaps: shared.gaps.load(Ordering::Relaxed),
        dropped_frames: shared.frames_dropped.load(Ordering::Relaxed),
        last_error: error.map(|error| error.message),
    }
}
