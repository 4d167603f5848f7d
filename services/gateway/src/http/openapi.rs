//! The document of the API, generated from the handlers.

use utoipa::OpenApi;
use utoipa::openapi::content::Content;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Ref, RefOr};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "kinemesh gateway",
        description = "Real-time generative video, steered while it plays. Follows what clients of Daydream Scope send; \
            every error is `{detail, error}`. Web pages of other origins than the server's own and those of \
            `gateway.allowed_origins` (by default: http on loopback) are refused.",
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

/// What every operation of the API answers to a web page of a foreign origin.
pub(super) fn document_refusals(document: &mut utoipa::openapi::OpenApi) {
    let items = document.paths.paths.iter_mut().filter(|(path, _)| path.starts_with("/api/"));
    for (_, item) in items {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let content = Content::new(Some(Ref::from_schema_name("ErrorBody")));
            let refusal = ResponseBuilder::new()
                .description(
                    "a web page of a foreign origin, or a foreign host name: see gateway.allowed_origins",
                )
                .content("application/json", content)
                .build();
            operation.responses.responses.entry("403".to_owned()).or_insert(RefOr::T(refusal));
        }
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
