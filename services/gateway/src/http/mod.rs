//! The HTTP surface: what existing clients expect, generated documentation, and the page.

mod auth;
mod body;
mod health;
mod observe;
mod openapi;
mod origin;
mod page;
mod pipeline;
mod schema;
mod sessions;
mod startup;
#[cfg(test)]
mod tests;
mod webrtc;

use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use crate::app::App;

pub use openapi::openapi_json;

/// Every documented route. The page, `/docs` and `/openapi.json` are not part of the API.
fn api() -> OpenApiRouter<App> {
    let router = OpenApiRouter::with_openapi(openapi::Document::openapi())
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::health))
        .routes(routes!(health::metrics))
        .routes(routes!(health::api_health))
        .routes(routes!(health::cell))
        .routes(routes!(pipeline::load))
        .routes(routes!(pipeline::status))
        .routes(routes!(pipeline::schemas))
        .routes(routes!(pipeline::models_status))
        .routes(routes!(webrtc::ice_servers))
        .routes(routes!(webrtc::offer))
        .routes(routes!(webrtc::candidates, webrtc::hang_up))
        .routes(routes!(sessions::set_parameters, sessions::parameters))
        .routes(routes!(sessions::frame))
        .routes(routes!(sessions::metrics))
        .routes(routes!(startup::osc_stream));
    let mut router = startup::add_to(router);
    openapi::document_refusals(router.get_openapi_mut());
    router
}

pub(crate) fn router(app: App) -> Router {
    let (router, document) = api().split_for_parts();
    router
        .route("/", get(page::index))
        .route("/assets/{name}", get(page::asset))
        .merge(SwaggerUi::new("/docs").url("/openapi.json", document))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), auth::check))
        .layer(origin::cors(&app))
        .layer(from_fn_with_state(app.clone(), origin::check))
        .layer(from_fn(observe::requests))
        .with_state(app)
}

/// Existing clients get the page for any unknown GET; an unknown API path stays an error.
async fn unknown(method: axum::http::Method, uri: Uri) -> Response {
    if method != axum::http::Method::GET {
        return wrong_method().await;
    }
    if uri.path().starts_with("/api/") || uri.path().starts_with("/assets/") {
        return (StatusCode::NOT_FOUND, body("Not Found", "not_found", "no_such_resource")).into_response();
    }
    page::index().await.into_response()
}

async fn wrong_method() -> Response {
    let body = body("Method Not Allowed", "invalid_argument", "no_such_resource");
    (StatusCode::METHOD_NOT_ALLOWED, body).into_response()
}

fn body(detail: &str, class: &str, reason: &str) -> axum::Json<Value> {
    axum::Json(json!({
        "detail": detail,
        "error": {"class": class, "reason": reason, "retryable": false, "message": detail},
    }))
}
