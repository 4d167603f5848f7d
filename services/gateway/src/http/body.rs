//! JSON bodies, refused in the form that FastAPI's clients know.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use contract::{Error, Reason};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::app::App;
use crate::error::ApiError;

/// A JSON body of type `T`, and the same untyped.
pub(super) struct JsonBody<T> {
    pub(super) value: T,
    pub(super) raw: Value,
}

impl<T: DeserializeOwned> FromRequest<App> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, app).await.map_err(|rejected| too_large(rejected, app))?;
        let raw: Value = serde_json::from_slice(&bytes).map_err(|e| {
            let error = Error::new(Reason::Malformed, format!("the body is not JSON: {e}"));
            ApiError::schema(error, &["body"], &Value::Null)
        })?;
        let value = serde_json::from_value(raw.clone())
            .map_err(|e| ApiError::schema(Error::new(Reason::Malformed, e.to_string()), &["body"], &raw))?;
        Ok(Self { value, raw })
    }
}

fn too_large(rejected: BytesRejection, app: &App) -> ApiError {
    if rejected.into_response().status() == StatusCode::PAYLOAD_TOO_LARGE {
        let allowed = app.config().gateway.max_body_bytes;
        return ApiError::new(
            Reason::PayloadTooLarge,
            format!("the body is too large: {allowed} bytes are allowed"),
        );
    }
    ApiError::new(Reason::Malformed, "the body could not be read")
}
