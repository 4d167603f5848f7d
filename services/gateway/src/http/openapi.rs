//! The document of the API, generated from the handlers.

use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "kinemesh gateway",
        description = "Real-time generative video, steered while it plays. Follows what clients of Daydream Scope send; \
            every error is `{detail, error}`.",
    ),
    tags(
        (name = "health", description = "is it alive, ready, and what is it"),
        (name = "pipeline", description = "what the cell serves"),
        (name = "webrtc", description = "offer, candidates, hang up"),
        (name = "session", description = "running sessions"),
        (name = "compatibility", description = "fixed answers that existing web pages ask for at start-up"),
    ),
    modifiers(&BearerToken),
)]
pub(super) struct Document;

struct BearerToken;

impl utoipa::Modify for BearerToken {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = document.components.get_or_insert_with(Default::default);
        components.add_security_scheme("token", scheme);
    }
}

/// The whole document as it is served and committed.
///
/// # Errors
/// It cannot be written as JSON: a defect.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    let (_, document) = super::api().split_for_parts();
    document.to_pretty_json().map(|json| json + "\n")
}
