//! Fixed answers to what existing web pages ask at start-up: things this server does not have, said in a way that lets
//! them go on.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::{MethodFilter, on};
use futures_util::stream::{self, Stream, StreamExt};
use serde_json::Value;
use utoipa::openapi::path::{HttpMethod, OperationBuilder};
use utoipa::openapi::{ContentBuilder, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;

const UNAVAILABLE: &str = r#"{"available":false,"reason":"not part of this server","install_hint":null}"#;
const ONBOARDING: &str = r#"{"completed":true,"inference_mode":"local","onboarding_style":null,"referral_source":null,"use_case":null}"#;

enum Verb {
    Get,
    Put,
    Post,
}

/// Verb, path, what it would be about, answer.
const ANSWERS: &[(Verb, &str, &str, &str)] = &[
    (Verb::Get, "/api/v1/onboarding/status", "nothing to set up first", ONBOARDING),
    (Verb::Put, "/api/v1/onboarding/status", "nothing to set up first", ONBOARDING),
    (
        Verb::Get,
        "/api/v1/cloud/status",
        "no remote instance",
        r#"{"connected":false,"connecting":false,"error":null,"connect_stage":null,"webrtc_connected":false,"app_id":null,"connection_id":null,"credentials_configured":false,"stats":null,"last_close_code":null,"last_close_reason":null}"#,
    ),
    (Verb::Get, "/api/v1/plugins", "no plugins", r#"{"plugins":[],"total":0,"failed_plugins":[]}"#),
    (Verb::Get, "/api/v1/input-sources", "no local sources", r#"{"input_sources":[]}"#),
    (
        Verb::Get,
        "/api/v1/tempo/status",
        "no tempo",
        r#"{"enabled":false,"source":null,"beats_per_bar":4,"beat_state":null}"#,
    ),
    (Verb::Get, "/api/v1/tempo/sources", "no tempo", r#"{"sources":{}}"#),
    (
        Verb::Get,
        "/api/v1/dmx/status",
        "no DMX",
        r#"{"enabled":false,"listening":false,"port":null,"preferred_port":6454,"host":null,"log_all_messages":false,"mapping_count":0}"#,
    ),
    (Verb::Post, "/api/v1/osc/inventory", "no OSC", r#"{"count":0}"#),
    (Verb::Get, "/api/v1/nodes/definitions", "no node graph", r#"{"nodes":[]}"#),
    (Verb::Get, "/api/v1/loras", "no LoRA files", r#"{"lora_files":[]}"#),
    (Verb::Get, "/api/v1/lora/list", "no LoRA files", r#"{"lora_files":[]}"#),
    (Verb::Get, "/api/v1/assets", "no assets", r#"{"assets":[]}"#),
    (Verb::Get, "/api/v1/keys", "no stored keys", r#"{"keys":[]}"#),
    (Verb::Get, "/api/v1/logs/tail", "logs are not served", r#"{"lines":[],"offset":0}"#),
    (Verb::Get, "/api/v1/hardware/info", "the gateway has no GPU", "hardware"),
];

fn answer(text: &str) -> Value {
    let hardware =
        || format!(r#"{{"vram_gb":null,"spout":{UNAVAILABLE},"ndi":{UNAVAILABLE},"syphon":{UNAVAILABLE}}}"#);
    let text = if text == "hardware" { hardware() } else { text.to_owned() };
    // The table is checked by a test.
    serde_json::from_str(&text).unwrap_or_default()
}

/// Routes and documents the table.
pub(super) fn add_to(mut router: OpenApiRouter<App>) -> OpenApiRouter<App> {
    for (verb, path, about, text) in ANSWERS {
        let (filter, method) = match verb {
            Verb::Get => (MethodFilter::GET, HttpMethod::Get),
            Verb::Put => (MethodFilter::PUT, HttpMethod::Put),
            Verb::Post => (MethodFilter::POST, HttpMethod::Post),
        };
        let body = answer(text);
        let content = ContentBuilder::new().example(Some(body.clone())).build();
        let response =
            ResponseBuilder::new().description(*about).content("application/json", content).build();
        let operation = OperationBuilder::new()
            .tag("compatibility")
            .summary(Some(*about))
            .response("200", response)
            .build();
        router = router.route(path, on(filter, move || async move { Json(body) }));
        router.get_openapi_mut().paths.add_path_operation(path, vec![method], operation);
    }
    router
}

/// An open, idle event stream: existing pages reconnect for ever without one.
#[utoipa::path(get, path = "/api/v1/osc/stream", tag = "compatibility",
    responses((status = 200, content_type = "text/event-stream", description = "never an event")))]
pub(super) async fn osc_stream(State(app): State<App>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let stopped = app.stop().clone().cancelled_owned();
    let silent = stream::pending().take_until(stopped);
    Sse::new(silent).keep_alive(KeepAlive::new().interval(Duration::from_secs(30)).text("keepalive"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_a_json_object() {
        for (_, path, _, text) in ANSWERS {
            assert!(answer(text).is_object(), "{path}");
        }
    }
}
