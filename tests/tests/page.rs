//! What the page tells a person, in a real browser against a real cell.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::time::Duration;

use serde_json::json;
use system_tests::{Cell, python, wait};

const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn a_page_whose_gateway_is_killed_says_so_and_comes_back_with_what_was_sent() {
    let mut cell = Cell::builder().ready().await;
    let pid = cell.pid("gateway").unwrap().to_string();
    let mut page = python::start("page_outage.py", &["--url", &cell.url(), "--pid", &pid]);
    cell.exit("gateway", PATIENCE).await;
    page.says("interrupted", PATIENCE).await;
    cell.start_process("gateway");
    let seen = page.finish(PATIENCE).await;

    let text = |value: &serde_json::Value| value.as_str().unwrap().to_lowercase();
    wait::assert_within(
        "noticing that the gateway is gone",
        Duration::from_secs_f64(seen["noticed_s"].as_f64().unwrap()),
        Duration::from_secs(2),
    );
    let interrupted = &seen["interrupted"];
    assert!(text(&interrupted["connection"]).contains("interrupted"), "{seen}");
    assert!(text(&interrupted["curtain"]).contains("does not answer"), "{seen}");
    assert_eq!(
        [&interrupted["fps"], &interrupted["mesh"], &interrupted["stale"], &interrupted["held"]],
        [&json!("–"), &json!("–"), &json!(true), &json!(true)],
        "{seen}"
    );
    assert!(text(&seen["picture"]).contains(&text(&seen["panel"])), "two numbers for one thing: {seen}");
    let again = &seen["again"]["parameters"];
    assert_eq!(
        (&again["prompts"][0]["text"], &again["base_seed"]),
        (&json!("a red kite"), &json!(7)),
        "{seen}"
    );
    assert_eq!(seen["again"]["held"], false, "{seen}");
    let paused = &seen["paused"];
    assert_eq!(
        (&paused["parameters"]["paused"], &paused["button"]),
        (&json!(true), &json!("Play")),
        "{seen}"
    );
    assert_eq!(paused["parameters"]["prompts"][0]["text"], "a red kite", "{seen}");
    assert_eq!(seen["curtain_away"], true, "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_says_what_became_of_what_was_sent_and_shows_what_others_change() {
    let cell = Cell::builder().env("gateway", "KINEMESH_GATEWAY__MAX_SESSIONS", "1").ready().await;
    let seen = python::run("page_steering.py", &["--url", &cell.url()], PATIENCE).await;
    assert_eq!(
        seen["mesh_epoch"]["told"].to_string(),
        seen["mesh_epoch"]["shown"].as_str().unwrap(),
        "{seen}"
    );
    assert_eq!(seen["examples"], false, "the tiny model has none to offer: {seen}");
    assert_eq!(seen["leaving"], json!([true, false, false]), "{seen}");
    assert_eq!(seen["notes"], json!(["tiny"]), "{seen}");
    let cache_epoch = |when: &str| seen["cache_epoch"][when].as_u64().unwrap();
    assert!(cache_epoch("after") > cache_epoch("before"), "a reset begins a new history: {seen}");
    assert_eq!(seen["followed"], json!({"steps": "[1000,400]", "bias": "0.50"}), "{seen}");
    assert_eq!(seen["bad_seed"], "77", "a seed that cannot be sent does not stay: {seen}");
    assert_eq!(seen["can_add"], false, "16 prompts are all that the server takes: {seen}");
    assert_eq!(seen["kept"]["prompt"], "half a thou", "{seen}");
    assert_ne!(seen["kept"]["seed"], "78", "{seen}");
    let full = seen["full"]["text"].as_str().unwrap();
    assert!(full.starts_with("This server shows as many streams as it can; trying again in "), "{seen}");
    assert!(seen["full"]["raw"].as_str().unwrap().contains("sessions of this gateway"), "{seen}");
    // A browser reports the refused second viewer as an error of its own; that page is not the one watched here.
    assert_eq!(seen["errors"], json!([]), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_offers_the_models_own_examples_and_begins_with_the_first() {
    let cell = Cell::builder().model("demo").ready().await;
    let seen = python::run("page_examples.py", &["--url", &cell.url()], PATIENCE).await;
    let told = seen["told"].as_array().unwrap();
    assert!(told.len() > 3 && seen["shown"] == seen["told"], "{seen}");
    assert_eq!((&seen["begins_with"], &seen["sent_first"][0]["text"]), (&told[0], &told[0]), "{seen}");
    assert_eq!(seen["reached"], told[1], "by the tabulator: {seen}");
    assert_eq!((&seen["box"], &seen["holds"][0]["text"]), (&told[1], &told[1]), "{seen}");
    assert_ne!(seen["colours"][0], seen["colours"][1], "light and dark: {seen}");
    assert_eq!(seen["errors"], json!([]), "{seen}");
}
