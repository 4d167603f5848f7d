//! Every benchmark, very small, on a CPU: what its line says. Times are looked at for sense, never for size.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod refusals;
mod services;
mod single;

use std::process::{Command, Output};

use serde_json::Value;

fn command(args: &str) -> Command {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_kinemesh-bench"));
    // What cargo says of this package is not where the checkout is. Threads that share busy cores wait for one another.
    bench.env_remove("CARGO_MANIFEST_DIR").env("OMP_NUM_THREADS", "1");
    bench.args(args.split_whitespace());
    bench
}

fn bench(args: &str) -> Output {
    command(args).output().unwrap()
}

/// The lines that a run prints.
fn lines(args: &str) -> Vec<Value> {
    let output = bench(args);
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The one line that a run prints.
fn line(args: &str) -> Value {
    let [line] = lines(args).try_into().unwrap();
    line
}

/// So many positive times, the 95th percentile not below the median.
fn assert_measured(summary: &Value, count: u64) {
    assert_eq!(summary["count"], count, "{summary}");
    let number = |key: &str| summary[key].as_f64().unwrap();
    assert!(number("median") > 0.0 && number("p95") >= number("median"), "{summary}");
}

/// The fields of `expected`, with these values.
fn assert_says(line: &Value, expected: &Value) {
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&line[field], value, "{field} of {line}");
    }
}

fn assert_positive(line: &Value, fields: &[&str]) {
    for field in fields {
        assert!(line[field].as_f64().is_some_and(|value| value > 0.0), "{field} of {line}");
    }
}

/// On a CPU: who it is, and no GPU.
fn assert_on_cpu(line: &Value) {
    assert_says(line, &serde_json::json!({"device": "cpu", "gpu": null, "device_memory_mib": null}));
    assert!(line["cpu"].is_string(), "{line}");
    assert_positive(line, &["cores"]);
}
