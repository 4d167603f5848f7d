//! A bearer token for the API, when one is configured. Health, the page and the documentation stay open.

use axum::extract::{Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use contract::Reason;

use crate::app::App;
use crate::error::ApiError;

pub(super) async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    // A preflight carries no credentials by design.
    let guarded = request.uri().path().starts_with("/api/") && request.method() != Method::OPTIONS;
    if let (true, Some(expected)) = (guarded, app.token()) {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        if !equal(given.as_bytes(), expected.as_bytes()) {
            return ApiError::new(Reason::BadToken, "a valid bearer token is needed").into_response();
        }
    }
    next.run(request).await
}

/// Takes the same time wherever two texts of one length differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::equal;

    #[test]
    fn only_the_same_token_is_equal() {
        assert!(equal(b"secret", b"secret"));
        assert!(!equal(b"secret", b"secreT") && !equal(b"", b"secret") && !equal(b"secrets", b"secret"));
    }
}
