//! What the cell serves. A cell's model is frozen for its lifetime, so `load` is a check, and chooses the size of the
//! sessions to come.

use axum::Json;
use axum::extract::State;
use contract::model::{ModelInfo, Size};
use contract::{Error, Reason};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::body::JsonBody;
use super::schema;
use crate::app::{App, Load};
use crate::cell::Snapshot;
use crate::error::{ApiError, ErrorBody};

#[derive(Deserialize, ToSchema)]
pub(super) struct LoadRequest {
    pipelines: Option<Vec<PipelineEntry>>,
    pipeline_ids: Option<Vec<String>>,
    /// `height`, `width`, `base_seed` (or `seed`).
    #[schema(value_type = Option<Value>)]
    load_params: Option<Value>,
}

#[derive(Deserialize, ToSchema)]
pub(super) struct PipelineEntry {
    node_id: Option<String>,
    pipeline_id: String,
    #[schema(value_type = Option<Value>)]
    load_params: Option<Value>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Message {
    message: &'static str,
}

/// Chooses model and size; anything the cell does not serve is a 400 that lists what it does.
#[utoipa::path(post, path = "/api/v1/pipeline/load", tag = "pipeline", request_body = LoadRequest,
    responses((status = 200, body = Message), (status = 400, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody, description = "the cell has not told its model yet")))]
pub(super) async fn load(
    State(app): State<App>,
    body: JsonBody<LoadRequest>,
) -> Result<Json<Message>, ApiError> {
    let entry = requested(body.value)?;
    let snapshot = app.cell().now();
    let Some(model) = &snapshot.model else {
        snapshot.check_ready()?;
        return Err(ApiError::new(Reason::NotReady, "the cell has not told its model yet"));
    };
    check_model(model, &entry.pipeline_id)?;
    let params = entry.load_params.unwrap_or_else(|| json!({}));
    check_supported(&params)?;
    let size = size(model, &params)?;
    let base_seed = ["base_seed", "seed"].iter().find_map(|key| params.get(key)?.as_u64());
    app.set_load(Load { node_id: entry.node_id.unwrap_or(entry.pipeline_id), params, size, base_seed });
    Ok(Json(Message { message: "Pipeline loading initiated successfully" }))
}

fn requested(request: LoadRequest) -> Result<PipelineEntry, Error> {
    let mut entries = request.pipelines.unwrap_or_default();
    if entries.is_empty() {
        let of_id = |pipeline_id| PipelineEntry {
            node_id: None,
            pipeline_id,
            load_params: request.load_params.clone(),
        };
        entries = request.pipeline_ids.unwrap_or_default().into_iter().map(of_id).collect();
    }
    let chain: Vec<&str> = entries.iter().map(|entry| entry.pipeline_id.as_str()).collect();
    match entries.len() {
        0 => Err(Error::new(Reason::BadField, "Either 'pipelines' or 'pipeline_ids' must be provided")),
        1 => Ok(entries.remove(0)),
        _ => Err(Error::new(
            Reason::UnsupportedModel,
            format!("a chain of {}: one pipeline is served", chain.join(", ")),
        )),
    }
}

/// # Errors
/// `unsupported_model`, naming what is served.
pub(super) fn check_model(model: &ModelInfo, pipeline_id: &str) -> Result<(), Error> {
    if pipeline_id == model.name {
        return Ok(());
    }
    let sizes: Vec<String> = model.sizes.iter().map(Size::to_string).collect();
    Err(Error::new(
        Reason::UnsupportedModel,
        format!("pipeline {pipeline_id:?}: this cell serves {:?} at {}", model.name, sizes.join(", ")),
    ))
}

/// Load parameters that would change the picture but cannot be honoured are refused by name.
fn check_supported(params: &Value) -> Result<(), Error> {
    for key in ["vace_enabled", "quantization", "loras", "ref_images"] {
        let asked = match params.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(_) => true,
        };
        if asked {
            let message = format!("{key} is {}: this cell's model is loaded without it", params[key]);
            return Err(Error::new(Reason::UnsupportedParameter, message));
        }
    }
    Ok(())
}

fn size(model: &ModelInfo, params: &Value) -> Result<Size, Error> {
    let default =
        model.default_size().ok_or_else(|| Error::new(Reason::Internal, "the model names no size"))?;
    let side = |key: &str, default: u32| match params.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_f64()
            .filter(|x| x.fract() == 0.0 && (1.0..65_536.0).contains(x))
            .map(|x| x as u32)
            .ok_or_else(|| {
                Error::new(Reason::BadField, format!("{key} is {value}: a number of pixels is expected"))
            }),
    };
    let size = Size { width: side("width", default.width)?, height: side("height", default.height)? };
    model.check_size(size)?;
    Ok(size)
}

#[derive(Serialize, ToSchema)]
pub(super) struct Status {
    /// `not_loaded`, `loading` or `loaded`.
    status: &'static str,
    pipeline_id: Option<String>,
    #[schema(value_type = Option<Value>)]
    load_params: Option<Value>,
    #[schema(value_type = Option<Value>)]
    loaded_lora_adapters: Option<Value>,
    error: Option<String>,
    loading_stage: Option<String>,
    produces_video: bool,
    produces_audio: bool,
}

/// `loaded` once the whole cell is ready; until then `loading`, and what it waits for.
#[utoipa::path(get, path = "/api/v1/pipeline/status", tag = "pipeline", responses((status = 200, body = Status)))]
pub(super) async fn status(State(app): State<App>) -> Json<Status> {
    Json(describe(&app.cell().now(), app.load()))
}

fn describe(snapshot: &Snapshot, load: Option<Load>) -> Status {
    let status = match (snapshot.ready(), load.is_some() || snapshot.model.is_some()) {
        (true, _) => "loaded",
        (false, true) => "loading",
        (false, false) => "not_loaded",
    };
    let (node_id, params) = load.map_or((None, None), |load| (Some(load.node_id), Some(load.params)));
    Status {
        status,
        pipeline_id: node_id.or_else(|| snapshot.model.as_ref().map(|model| model.name.clone())),
        load_params: params,
        loaded_lora_adapters: None,
        error: None,
        loading_stage: if snapshot.ready() { None } else { snapshot.waiting_for.clone() },
        produces_video: true,
        produces_audio: false,
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct Schemas {
    /// Schema by pipeline id.
    #[schema(value_type = Value)]
    pipelines: Value,
}

/// The one pipeline of the cell; empty until it has told its model.
#[utoipa::path(get, path = "/api/v1/pipelines/schemas", tag = "pipeline", responses((status = 200, body = Schemas)))]
pub(super) async fn schemas(State(app): State<App>) -> Json<Schemas> {
    Json(Schemas { pipelines: app.cell().now().model.as_ref().map_or_else(|| json!({}), schema::pipelines) })
}

#[derive(Serialize, ToSchema)]
pub(super) struct ModelsStatus {
    downloaded: bool,
    #[schema(value_type = Option<Value>)]
    progress: Option<Value>,
}

/// Weights are the operator's business: there is nothing for a client to download.
#[utoipa::path(get, path = "/api/v1/models/status", tag = "pipeline", responses((status = 200, body = ModelsStatus)))]
pub(super) async fn models_status() -> Json<ModelsStatus> {
    Json(ModelsStatus { downloaded: true, progress: None })
}
