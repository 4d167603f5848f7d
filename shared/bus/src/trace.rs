//! W3C trace context across requests: a handler runs in the scope of its request's `traceparent`, and whatever it asks
//! others carries the same trace id.

use std::future::Future;

tokio::task_local! {
    static TRACEPARENT: String;
}

/// The trace context of the request being handled, to hand to what outlives its handler.
#[must_use]
pub fn current_traceparent() -> Option<String> {
    TRACEPARENT.try_with(Clone::clone).ok()
}

/// Runs `work` in the scope of `traceparent`, or of a new trace when there is none.
pub(crate) async fn scope<F: Future>(traceparent: Option<String>, work: F) -> F::Output {
    TRACEPARENT.scope(traceparent.unwrap_or_else(generate), work).await
}

/// `00-<16 bytes trace id>-<8 bytes span id>-01`
fn generate() -> String {
    let trace = loop {
        let id = rand::random::<u128>();
        if id != 0 {
            break id;
        }
    };
    format!("00-{trace:032x}-{:016x}-01", rand::random::<u64>().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_trace_is_kept_within_a_scope_and_made_where_there_is_none() {
        assert_eq!(current_traceparent(), None);
        let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned();
        let seen = scope(Some(given.clone()), async { current_traceparent() }).await;
        assert_eq!(seen, Some(given));
        let made = scope(None, async { current_traceparent() }).await.unwrap();
        assert_eq!(made.len(), 55);
    }
}
