//! JSON bodies, refused in the form that FastAPI's clients know.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use contract::{Error, Reason};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use crate::app::App;
use crate::error::ApiError;

/// A client that sends a body slower than this is not worth the connection.
const READ_WAIT: Duration = Duration::from_secs(10);
/// What of a body that is too large is still read and thrown away: a client that cannot finish sending often does not
/// see the answer.
const MAX_DISCARDED: usize = 8 * 1024 * 1024;

/// A JSON body of type `T`, and the same untyped.
pub(super) struct JsonBody<T> {
    pub(super) value: T,
    pub(super) raw: Value,
}

impl<T: DeserializeOwned> FromRequest<App> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let bytes = timeout(READ_WAIT, read(request.into_body(), app.config().gateway.max_body_bytes))
            .await
            .map_err(|_| ApiError::new(Reason::Malformed, "the body did not arrive in time"))??;
        let raw: Value = serde_json::from_slice(&bytes).map_err(|e| {
            let error = Error::new(Reason::Malformed, format!("the body is not JSON: {e}"));
            ApiError::schema(error, &["body"], &Value::Null)
        })?;
        let value = serde_json::from_value(raw.clone())
            .map_err(|e| ApiError::schema(Error::new(Reason::Malformed, e.to_string()), &["body"], &raw))?;
        Ok(Self { value, raw })
    }
}

async fn read(body: Body, allowed: usize) -> Result<Vec<u8>, ApiError> {
    let mut chunks = body.into_data_stream();
    let (mut bytes, mut total) = (Vec::new(), 0_usize);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| ApiError::new(Reason::Malformed, "the body could not be read"))?;
        total = total.saturating_add(chunk.len());
        if total <= allowed {
            bytes.extend_from_slice(&chunk);
        } else if total > MAX_DISCARDED {
            break;
        }
    }
    if total > allowed {
        let message = format!("the body is too large: {allowed} bytes are allowed");
        return Err(ApiError::new(Reason::PayloadTooLarge, message));
    }
    Ok(bytes)
}
