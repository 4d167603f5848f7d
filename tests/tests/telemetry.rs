//! What the real services tell whoever watches them: metrics and logs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use runtime::metric_names;
use serde_json::{Value, json};
use system_tests::http::Http;
use system_tests::{Cell, Viewer, wait};

/// Samples by name; those that differ in labels are added up. Anything that is not the text format is refused.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line:?}"));
        let name = series.split('{').next().unwrap();
        let value: f64 = value.parse().unwrap_or_else(|e| panic!("not a number ({e}): {line:?}"));
        *samples.entry(name.to_owned()).or_default() += value;
    }
    samples
}

async fn positive(http: &Http, process: &str, names: &[&str]) -> BTreeMap<String, f64> {
    wait::until(&format!("{names:?} of {process}"), Duration::from_secs(10), || async {
        let answer = http.get("/metrics").await;
        assert_eq!(answer.status, 200, "{process}: {}", answer.text);
        let samples = samples(&answer.text);
        names.iter().all(|name| samples.get(*name).is_some_and(|value| *value > 0.0)).then_some(samples)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_has_metrics_and_they_count_what_it_did() {
    let cell = Cell::builder().ready().await;
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &json!({"prompts": [{"text": "a red fox"}]})).await;
    viewer.chunks_until(2).await;
    let seconds = |name: &str| format!("{name}_count");
    let (chunk, call, generator) = (
        seconds(metric_names::CHUNK_SECONDS),
        seconds(metric_names::CALL_SECONDS),
        seconds(metric_names::GENERATOR_SECONDS),
    );
    let expected: [(&str, &[&str]); 4] = [
        ("gateway", &[metric_names::BUS_CONNECTED, metric_names::HTTP_REQUESTS]),
        (
            "stage0",
            &[metric_names::BUS_CONNECTED, metric_names::SESSIONS, metric_names::FRAMES, &chunk, &call],
        ),
        ("leader", &[metric_names::BUS_CONNECTED, metric_names::MESH_EPOCH, &generator]),
        ("worker1", &[metric_names::BUS_CONNECTED, metric_names::MESH_EPOCH, metric_names::WORLD_SIZE]),
    ];
    for (process, names) in expected {
        let samples = positive(&cell.http_of(process), process, names).await;
        let foreign: Vec<_> = samples.keys().filter(|name| !known(name)).collect();
        assert_eq!(foreign, Vec::<&String>::new(), "{process}: names that the one table does not hold");
    }
    viewer.end().await;
}

fn known(name: &str) -> bool {
    let base =
        ["_count", "_sum", "_bucket"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
    metric_names::ALL.iter().any(|known| *known == base || *known == name)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_request_every_line_of_every_service_is_a_json_object() {
    let mut builder = Cell::builder();
    let services = ["gateway", "stage0", "leader", "worker1"];
    for service in services {
        builder = builder.env(service, "KINEMESH_LOG__FORMAT", "json");
    }
    let cell = builder.ready().await;
    for service in services {
        let printed = cell.printed(service);
        // The last line may still be on its way.
        let whole = printed.rsplit_once('\n').map_or("", |(whole, _)| whole);
        assert!(!whole.is_empty(), "{service} printed nothing");
        for line in whole.lines() {
            let event: Value =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{service}: {e}: {line:?}"));
            for key in ["timestamp", "level", "message", "target"] {
                assert!(event[key].is_string(), "{service}: no {key}: {line}");
            }
        }
    }
}
