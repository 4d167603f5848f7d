//! The one mapping from an error to an HTTP answer: FastAPI's `detail`, with the structured `error` beside it.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use contract::{Class, Error, Reason};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// What every failed request answers.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// A text, or for a 422 a list of `{type, loc, msg, input}`.
    #[schema(value_type = Value)]
    pub(crate) detail: Value,
    pub(crate) error: ErrorObject,
}

/// The catalogue's entry: what it is, and whether the same request may succeed later.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorObject {
    #[schema(example = "invalid_argument")]
    pub(crate) class: &'static str,
    #[schema(example = "bad_sdp")]
    pub(crate) reason: &'static str,
    pub(crate) retryable: bool,
    pub(crate) message: String,
}

impl From<&Error> for ErrorObject {
    fn from(error: &Error) -> Self {
        Self {
            class: error.class().as_str(),
            reason: error.reason.as_str(),
            retryable: error.retryable(),
            message: error.message.clone(),
        }
    }
}

/// An error on its way to an HTTP client.
#[derive(Debug)]
pub(crate) struct ApiError {
    error: Error,
    validation: Option<Value>,
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self { error, validation: None }
    }
}

impl ApiError {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Error::new(reason, message).into()
    }

    /// A body that breaks its schema at `loc`: 422 in FastAPI's form.
    pub(crate) fn schema(error: Error, loc: &[&str], input: &Value) -> Self {
        let entry = json!({
            "type": error.reason.as_str(), "loc": loc, "msg": error.message, "input": input,
        });
        Self { error, validation: Some(json!([entry])) }
    }

    /// Refused session parameters that stand at `loc` of the body: 422 where a value is wrong, 400 where the running
    /// plan cannot do it.
    pub(crate) fn parameters(error: Error, loc: &[&str], parameters: &Value) -> Self {
        if error.class() != Class::InvalidArgument {
            return error.into();
        }
        let key = offending_key(&error, parameters);
        let input = key.as_ref().and_then(|key| parameters.get(key)).unwrap_or(parameters);
        let loc: Vec<&str> = loc.iter().copied().chain(key.as_deref()).collect();
        Self::schema(error, &loc, input)
    }

    #[must_use]
    pub(crate) fn status(&self) -> StatusCode {
        if self.validation.is_some() {
            return StatusCode::UNPROCESSABLE_ENTITY;
        }
        match self.error.reason {
            // The class says "too much"; HTTP has a status of its own for a body that is.
            Reason::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            reason => StatusCode::from_u16(reason.class().http_status())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// Seconds after which the same request is worth another try.
    fn retry_after(&self) -> Option<&'static str> {
        match self.status() {
            StatusCode::SERVICE_UNAVAILABLE => Some("1"),
            StatusCode::TOO_MANY_REQUESTS if self.error.retryable() => Some("5"),
            _ => None,
        }
    }
}

/// Refusals begin with the key they are about.
fn offending_key(error: &Error, parameters: &Value) -> Option<String> {
    let first = error.message.split([' ', '.', ':', '[']).next().unwrap_or_default();
    let key = if error.reason == Reason::BadSteps { "denoising_step_list" } else { first };
    parameters.get(key).is_some().then(|| key.to_owned())
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            tracing::warn!(error = %self.error, detail = self.error.detail, status = status.as_u16(), "request failed");
        } else {
            tracing::debug!(error = %self.error, detail = self.error.detail, status = status.as_u16(), "request refused");
        }
        let retry_after = self.retry_after();
        let detail = self.validation.unwrap_or_else(|| Value::String(self.error.message.clone()));
        let body = Json(ErrorBody { detail, error: ErrorObject::from(&self.error) });
        let mut response = (status, body).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use contract::params::Parameters;

    use super::*;

    #[test]
    fn every_reason_has_an_error_status_and_a_busy_one_says_when_to_retry() {
        for reason in Reason::ALL {
            let response = ApiError::new(*reason, "x").into_response();
            assert!(response.status().is_client_error() || response.status().is_server_error());
            if matches!(response.status().as_u16(), 503) {
                assert!(response.headers().contains_key(header::RETRY_AFTER), "{reason:?}");
            }
        }
        let full = ApiError::new(Reason::TooManySessions, "x").into_response();
        assert_eq!(full.status(), 429);
        assert!(full.headers().contains_key(header::RETRY_AFTER));
        assert_eq!(ApiError::new(Reason::PayloadTooLarge, "x").status(), 413);
    }

    #[test]
    fn a_wrong_parameter_is_a_422_that_names_its_place() {
        for (parameters, key) in [
            (json!({"noise_scale": 2}), "noise_scale"),
            (json!({"prompts": ["a fox"]}), "prompts"),
            (json!({"prompts": [{"text": "a fox", "weight": -1}]}), "prompts"),
            (json!({"denoising_step_list": [1, 2]}), "denoising_step_list"),
            (json!({"transition": {"target_prompts": [{"text": "b"}], "num_steps": 1.5}}), "transition"),
        ] {
            let refused = Parameters::from_json(&parameters).unwrap_err();
            let error = ApiError::parameters(refused, &["body", "initialParameters"], &parameters);
            assert_eq!(error.status(), 422);
            let entry = &error.validation.unwrap()[0];
            assert_eq!(entry["loc"], json!(["body", "initialParameters", key]));
            assert_eq!(entry["input"], parameters[key]);
        }
    }

    #[test]
    fn what_the_plan_cannot_do_is_a_400() {
        let parameters = json!({"vace_ref_images": ["a.png"]});
        let refused = Parameters::from_json(&parameters).unwrap_err();
        assert_eq!(ApiError::parameters(refused, &["body"], &parameters).status(), 400);
    }
}
