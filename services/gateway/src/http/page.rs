//! The web page, embedded.

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

const INDEX: &str = include_str!("../../web/index.html");

/// Name, content type, content.
const ASSETS: &[(&str, &str, &str)] = &[
    ("style.css", "text/css; charset=utf-8", include_str!("../../web/style.css")),
    ("main.js", JS, include_str!("../../web/main.js")),
    ("api.js", JS, include_str!("../../web/api.js")),
    ("stream.js", JS, include_str!("../../web/stream.js")),
    ("controls.js", JS, include_str!("../../web/controls.js")),
    ("prompts.js", JS, include_str!("../../web/prompts.js")),
    ("panel.js", JS, include_str!("../../web/panel.js")),
    ("examples.js", JS, include_str!("../../web/examples.js")),
    ("receipts.js", JS, include_str!("../../web/receipts.js")),
    ("screen.js", JS, include_str!("../../web/screen.js")),
    ("texts.js", JS, include_str!("../../web/texts.js")),
    ("wishes.js", JS, include_str!("../../web/wishes.js")),
    ("keys.js", JS, include_str!("../../web/keys.js")),
    ("icon.svg", "image/svg+xml", include_str!("../../web/icon.svg")),
];

const JS: &str = "text/javascript; charset=utf-8";
/// The page loads nothing from elsewhere and is framed by nobody.
const POLICY: &str = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob: mediastream:; frame-ancestors 'self'";

pub(super) async fn index() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ];
    (headers, INDEX).into_response()
}

pub(super) async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(asset, ..)| *asset == name) {
        Some((_, kind, content)) => {
            ([(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, "no-cache")], *content).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_page_names_is_embedded() {
        for text in std::iter::once(INDEX).chain(ASSETS.iter().map(|(_, _, content)| *content)) {
            for name in
                text.split("/assets/").skip(1).map(|rest| rest.split(['"', '\'', ')']).next().unwrap())
            {
                assert!(ASSETS.iter().any(|(asset, ..)| *asset == name), "{name}");
            }
        }
    }
}
