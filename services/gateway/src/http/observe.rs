//! Counts and times requests by route.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use runtime::metric_names;

pub(super) async fn requests(request: Request, next: Next) -> Response {
    let started = Instant::now();
    // Routes are few; paths are whatever a client makes up.
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    metrics::counter!(metric_names::HTTP_REQUESTS, "route" => route.clone(), "status" => status).increment(1);
    metrics::histogram!(metric_names::HTTP_SECONDS, "route" => route).record(started.elapsed().as_secs_f64());
    response
}
