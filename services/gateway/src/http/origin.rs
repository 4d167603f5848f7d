//! Refuses what a foreign web page asks for, and tells browsers which pages may read answers.

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use contract::Reason;
use tower_http::cors::{AllowCredentials, AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::app::App;
use crate::error::ApiError;
use crate::origins::is_loopback;

/// Of a header in an error's text.
const MAX_SHOWN: usize = 200;

/// Answers pages that may ask; for others there is nothing that lets them read.
pub(super) fn cors(app: &App) -> CorsLayer {
    let layer = CorsLayer::new()
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER]);
    if app.origins().any() {
        return layer.allow_origin(AllowOrigin::any());
    }
    let allowed = |app: &App| {
        let app = app.clone();
        move |origin: &HeaderValue, parts: &Parts| may_ask(&app, origin, &parts.headers, &parts.uri)
    };
    layer
        .allow_origin(AllowOrigin::predicate(allowed(app)))
        .allow_credentials(AllowCredentials::predicate(allowed(app)))
}

/// The browser keeps an answer from a page that may not read it, but what was asked for is done by then: so it is refused
/// before. A page, a script or a health check that another page merely names stays open.
pub(super) async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    if let Err(error) = judge(&app, &request) {
        return error.into_response();
    }
    next.run(request).await
}

fn judge(app: &App, request: &Request) -> Result<(), ApiError> {
    let (headers, uri) = (request.headers(), request.uri());
    if let Some(name) = host(headers, uri)
        && is_loopback(&app.config().common.http.bind)
        && !app.origins().know_host(name)
    {
        let message = format!(
            "host {}: this server answers on localhost alone; a proxy's name is allowed by gateway.allowed_origins",
            shown(name)
        );
        return Err(ApiError::new(Reason::ForeignHost, message));
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if reads && !uri.path().starts_with("/api/") {
        return Ok(());
    }
    match headers.get(header::ORIGIN) {
        Some(origin) if !may_ask(app, origin, headers, uri) => {
            let origin = shown(&String::from_utf8_lossy(origin.as_bytes())).to_owned();
            let message = format!(
                "web pages of {origin} may not use this server: gateway.allowed_origins allows {}",
                app.origins()
            );
            Err(ApiError::new(Reason::ForeignOrigin, message))
        }
        _ => Ok(()),
    }
}

fn may_ask(app: &App, origin: &HeaderValue, headers: &HeaderMap, uri: &Uri) -> bool {
    origin.to_str().is_ok_and(|origin| app.origins().allow(origin, host(headers, uri)))
}

/// HTTP/2 has it in the address.
fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    let named = headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    named.or_else(|| uri.authority().map(axum::http::uri::Authority::as_str))
}

fn shown(text: &str) -> &str {
    text.char_indices().nth(MAX_SHOWN).map_or(text, |(end, _)| &text[..end])
}
