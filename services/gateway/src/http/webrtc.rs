//! Signalling: offer, trickled candidates, hang up.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use contract::params::Parameters;
use contract::{Error, Reason};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::body::JsonBody;
use super::pipeline::check_model;
use crate::app::App;
use crate::error::{ApiError, ErrorBody};
use crate::media::{offer, peer};
use crate::session;

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct IceServers {
    ice_servers: Vec<IceServer>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct IceServer {
    urls: Vec<String>,
    username: Option<String>,
    credential: Option<String>,
}

/// STUN and TURN servers for the client's own candidates.
#[utoipa::path(get, path = "/api/v1/webrtc/ice-servers", tag = "webrtc", responses((status = 200, body = IceServers)))]
pub(super) async fn ice_servers(State(app): State<App>) -> Json<IceServers> {
    let config = &app.config().webrtc;
    let stun = IceServer { urls: config.stun_urls.clone(), username: None, credential: None };
    let turn = IceServer {
        urls: config.turn_urls.clone(),
        username: config.turn_username.clone(),
        credential: config.turn_credential.clone(),
    };
    Json(IceServers {
        ice_servers: [stun, turn].into_iter().filter(|server| !server.urls.is_empty()).collect(),
    })
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct OfferRequest {
    sdp: String,
    /// `offer`
    r#type: String,
    /// Parameters of the session's first chunk. Pipelines that `pipeline_ids` and the nodes of `graph` name must be the
    /// one that is served.
    #[schema(value_type = Option<Value>)]
    initial_parameters: Option<Value>,
    /// From an earlier answer: goes on with that session, where it is, instead of starting another one.
    resume_token: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct OfferAnswer {
    sdp: String,
    /// `answer`
    r#type: &'static str,
    session_id: String,
    /// Shown with a later offer it goes on with this session: after a reload, a lost network, another gateway. Keep it secret.
    resume_token: String,
}

/// Starts a session. Every candidate of the server is in the answer.
#[utoipa::path(post, path = "/api/v1/webrtc/offer", tag = "webrtc", request_body = OfferRequest,
    responses((status = 200, body = OfferAnswer),
        (status = 400, body = ErrorBody, description = "bad SDP, no common codec, unsupported parameter or size"),
        (status = 401, body = ErrorBody, description = "the resume token is not that session's"),
        (status = 413, body = ErrorBody), (status = 422, body = ErrorBody, description = "a parameter's value is not allowed"),
        (status = 429, body = ErrorBody, description = "all sessions are in use; see Retry-After"),
        (status = 503, body = ErrorBody, description = "not ready; see Retry-After"), (status = 504, body = ErrorBody)))]
pub(super) async fn offer(
    State(app): State<App>,
    body: JsonBody<OfferRequest>,
) -> Result<Json<OfferAnswer>, ApiError> {
    let request = body.value;
    if request.r#type != "offer" {
        let message = format!("type is {:?}: \"offer\" is expected", request.r#type);
        return Err(ApiError::new(Reason::BadSdp, message));
    }
    let allowed = app.config().gateway.max_sdp_bytes;
    if request.sdp.len() > allowed {
        let message = format!("the SDP has {} bytes: {allowed} are allowed", request.sdp.len());
        return Err(ApiError::new(Reason::PayloadTooLarge, message));
    }
    let initial = request.initial_parameters.filter(|value| !value.is_null()).unwrap_or_else(|| json!({}));
    let mut parameters = Parameters::from_json(&initial)
        .map_err(|error| ApiError::parameters(error, &["body", "initialParameters"], &initial))?;
    let offer = offer::inspect(&request.sdp)?;
    let snapshot = app.cell().now();
    if let Some(model) = &snapshot.model {
        asked_pipelines(&initial).try_for_each(|id| check_model(model, id))?;
    }
    let resume = request.resume_token.as_deref().map(session::ResumeToken::parse).transpose()?;
    let load = app.load();
    if parameters.base_seed.is_none() {
        parameters.base_seed = load.as_ref().and_then(|load| load.base_seed);
    }
    let size = load.map(|load| load.size);
    let request = session::Request { sdp: request.sdp, offer, parameters, size, resume };
    // A client that goes away while it waits must not leave half a session: the work is not tied to its request.
    let started = tokio::spawn(async move { Box::pin(session::start(&app, request)).await });
    let started = started.await.map_err(|e| {
        Error::new(Reason::Internal, "the session could not be started").detail(e.to_string())
    })??;
    Ok(Json(OfferAnswer {
        sdp: started.answer,
        r#type: "answer",
        session_id: started.token.session.to_string(),
        resume_token: started.token.reveal(),
    }))
}

/// Clients name pipelines in a list, in the nodes of a graph, or in both.
fn asked_pipelines(initial: &Value) -> impl Iterator<Item = &str> {
    fn entries(list: Option<&Value>) -> impl Iterator<Item = &Value> {
        list.and_then(Value::as_array).into_iter().flatten()
    }
    let listed = entries(initial.get("pipeline_ids"));
    let nodes = entries(initial.pointer("/graph/nodes")).filter_map(|node| node.get("pipeline_id"));
    listed.chain(nodes).filter_map(Value::as_str)
}

#[derive(Deserialize, ToSchema)]
pub(super) struct Candidates {
    candidates: Vec<Candidate>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Candidate {
    candidate: String,
    sdp_mid: Option<String>,
    #[serde(rename = "sdpMLineIndex")]
    sdp_m_line_index: Option<u16>,
}

/// Adds the client's candidates.
#[utoipa::path(patch, path = "/api/v1/webrtc/offer/{session_id}", tag = "webrtc", request_body = Candidates,
    params(("session_id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody, description = "no such session, or no such candidate"),
        (status = 413, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub(super) async fn candidates(
    State(app): State<App>,
    Path(session_id): Path<String>,
    body: JsonBody<Candidates>,
) -> Result<StatusCode, ApiError> {
    if body.value.candidates.is_empty() {
        return Ok(StatusCode::NO_CONTENT);
    }
    let session = app.sessions().get(&session_id)?;
    for candidate in body.value.candidates {
        let Candidate { candidate, sdp_mid, sdp_m_line_index } = candidate;
        peer::add_candidate(session.connection.as_ref(), &candidate, sdp_mid, sdp_m_line_index).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Ends a session; an unknown one has ended.
#[utoipa::path(delete, path = "/api/v1/webrtc/offer/{session_id}", tag = "webrtc",
    params(("session_id" = String, Path)), responses((status = 204)))]
pub(super) async fn hang_up(State(app): State<App>, Path(session_id): Path<String>) -> StatusCode {
    if let Ok(session) = app.sessions().get(&session_id) {
        session.end(None).await;
    }
    StatusCode::NO_CONTENT
}
