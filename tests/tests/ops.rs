//! What an operator with a NATS client may ask, hears, and gets.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::time::{Duration, Instant};

use contract::event::{Event, SessionState};
use contract::subjects::Ops;
use contract::{Reason, SessionId};
use serde_json::{Value, json};
use system_tests::operator::{process, processes};
use system_tests::viewer::creation;
use system_tests::{Cell, Operator, Signal, Viewer, wait};

const MINUTE: Duration = Duration::from_secs(60);

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

/// The names under which the cell's processes are started, and their roles.
const PROCESSES: [(&str, &str); 4] =
    [("gateway", "gateway"), ("stage0", "stage0"), ("leader", "mesh_leader"), ("worker1", "tp_worker")];

/// The status once `holds`.
async fn status_where(operator: &Operator, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    wait::until(what, MINUTE, || async {
        let answer = operator.try_ask(Ops::Status, "").await?;
        holds(&answer.body).then_some(answer.body)
    })
    .await
}

async fn viewer(cell: &Cell) -> Viewer {
    Viewer::open(&cell.bus("gateway").await, &cell.id(), &json!({"prompts": [{"text": "a fox"}]})).await
}

/// The end of a session, and the error that its client is told.
async fn ended(viewer: &mut Viewer) -> Option<Reason> {
    viewer
        .event_where(|event| match event {
            Event::State { state: SessionState::Ended, error } => Some(error.as_ref().map(|e| e.reason)),
            _ => None,
        })
        .await
}

/// The watchdog's rule, from the numbers that status shows.
fn assert_budget_follows(stage0: &Value, floor_ms: f64) {
    let (calls, budget) = (&stage0["stage0"]["calls"], number(&stage0["stage0"]["call_budget_ms"]));
    let wanted = (4.0 * number(&calls["p99_ms"])).clamp(floor_ms, 10_000.0);
    assert!((budget - wanted).abs() <= 1.0, "budget {budget} of {calls}: {wanted} is expected");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_the_truth_of_every_process_and_session() {
    let cell = Cell::builder().ready().await;
    let operator = Operator::connect(&cell).await;
    let mut viewer = viewer(&cell).await;
    viewer.chunks_until(9).await;
    // A process tells of itself twice a second: what it tells must have come after the ninth chunk.
    let status = status_where(&operator, "measured calls", |status| {
        let measured = |process: &Value, key: &str| process[key]["chunks"]["count"].as_u64() >= Some(9);
        processes(status, "tp_worker").iter().all(|worker| measured(worker, "mesh"))
    })
    .await;

    assert_eq!(
        (&status["cell"], &status["ready"], &status["draining"]),
        (&json!("cell0"), &json!(true), &json!(false))
    );
    let stage0 = process(&status, "stage0");
    assert_eq!(status["answered_by"]["role"], "stage0");
    assert_eq!(status["answered_by"]["instance"], stage0["instance"]);
    for (name, role) in PROCESSES {
        let told = process(&status, role);
        let pid = cell.pid(name).unwrap();
        assert_eq!(told["pid"], pid, "{name}");
        let pages = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
        let resident = pages.split(' ').nth(1).unwrap().parse::<f64>().unwrap() * 4096.0;
        let ratio = number(&told["rss_bytes"]) / resident;
        assert!((0.5..2.0).contains(&ratio), "{name} tells {} bytes, has {resident}", told["rss_bytes"]);
        assert_eq!((&told["state"], &told["restarts"]), (&json!("ready"), &json!(0)), "{told}");
        assert!(number(&told["age_ms"]) < 1500.0 && number(&told["uptime_ms"]) > 0.0, "{told}");
    }

    let (leader, worker) = (&process(&status, "mesh_leader")["mesh"], &process(&status, "tp_worker")["mesh"]);
    assert_eq!((&leader["rank"], &worker["rank"]), (&json!(0), &json!(1)));
    assert!(leader["epoch"].is_u64() && leader["epoch"] == worker["epoch"], "{leader} {worker}");
    assert_eq!(leader["lease_holder"], stage0["instance"]);
    assert_eq!(leader["lease"], stage0["stage0"]["lease"]);
    for (rank, peer) in [(leader, 1), (worker, 0)] {
        assert_eq!(rank["beats"][0]["rank"], peer);
        assert!(number(&rank["beats"][0]["age_ms"]) < 1000.0, "{rank}");
        assert_eq!(rank["last_fault"], Value::Null);
        let chunks = &rank["chunks"];
        assert!(number(&chunks["count"]) >= 9.0 && number(&chunks["p50_ms"]) > 0.0, "{chunks}");
        assert!(number(&chunks["p50_ms"]) <= number(&chunks["p99_ms"]), "{chunks}");
        assert!(rank["last_plan"].as_u64() >= Some(9), "{rank}");
    }
    assert!(number(&leader["last_call"]) >= 5.0 && number(&stage0["stage0"]["last_call"]) >= 9.0, "{status}");
    assert_eq!(stage0["stage0"]["link"], "open");
    assert_budget_follows(stage0, 2_000.0);

    let session = &status["sessions"][0];
    assert_eq!(session["session"], viewer.session.to_string());
    assert_eq!((&session["state"], &session["incarnation"]), (&json!("streaming"), &json!(1)));
    assert!(number(&session["chunk_index"]) >= 8.0 && number(&session["fps"]) > 0.0, "{session}");
    viewer.end().await;
    status_where(&operator, "no session", |status| status["sessions"] == json!([])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_understood_is_refused_by_name_and_does_nothing() {
    let cell = Cell::builder().ready().await;
    let operator = Operator::connect(&cell).await;
    let stranger = SessionId::random().to_string();
    let unknown = format!(r#"{{"session": "{stranger}"}}"#);
    for (verb, body, code, reason, named) in [
        (Ops::Drain, r#"{"force": true}"#, "400", "malformed", "force"),
        (Ops::Shutdown, r#"{"now": 1}"#, "400", "malformed", "now"),
        (Ops::Status, r#"{"recorders": true}"#, "400", "malformed", "recorders"),
        (Ops::Reset, r#"{"session": "seven"}"#, "400", "malformed", "UUID"),
        (Ops::Reset, "{session", "400", "malformed", "JSON"),
        (Ops::Reset, &unknown, "404", "no_such_session", &stranger),
    ] {
        let answer = operator.ask(verb, body).await;
        assert_eq!(answer.code.as_deref(), Some(code), "{body}: {}", answer.body);
        assert_eq!(answer.body["reason"], reason, "{body}");
        let message = answer.body["message"].as_str().unwrap();
        assert!(message.contains(named), "{body}: {message}");
    }
    let status = operator.status().await;
    assert_eq!((&status["ready"], &status["draining"]), (&json!(true), &json!(false)), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_the_sessions_and_stage0_and_nothing_else() {
    let mut cell = Cell::builder().ready().await;
    let operator = Operator::connect(&cell).await;
    let mut viewer = viewer(&cell).await;
    viewer.chunk().await;

    let asked = Instant::now();
    let (first, second) = tokio::join!(operator.order(Ops::Drain, ""), operator.order(Ops::Drain, "{}"));
    assert_eq!(first, second, "asked twice, answered the same");
    assert_eq!(first["sessions"], json!([viewer.session]));
    assert_eq!(ended(&mut viewer).await, Some(Reason::Draining));
    let bound = Duration::from_millis(first["within_ms"].as_u64().unwrap());
    let status = cell.exit("stage0", MINUTE).await;
    wait::assert_within("the drain", asked.elapsed(), bound);
    assert_eq!(status.code(), Some(0));

    // As the answer said: the instance falls silent. The gateway tells, since no stage0 does.
    let after = status_where(&operator, "the gateway's answer", |status| {
        status["answered_by"]["role"] == "gateway" && process(status, "stage0")["state"] == "silent"
    })
    .await;
    assert_eq!(process(&after, "stage0")["instance"], first["instance"]);
    assert_eq!((&after["ready"], &after["waiting_for"]), (&json!(false), &json!("stage0")));
    for name in ["gateway", "leader", "worker1"] {
        assert!(cell.pid(name).is_some(), "{name} has ended");
    }

    cell.start_process("stage0");
    cell.wait_ready(MINUTE).await;
    let again = status_where(&operator, "the next stage0's answer", |status| {
        status["answered_by"]["role"] == "stage0"
    })
    .await;
    assert_ne!(again["answered_by"]["instance"], first["instance"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage0_that_drains_refuses_new_sessions_with_the_reason() {
    let cell = Cell::builder().ready().await;
    let operator = Operator::connect(&cell).await;
    let mut viewer = viewer(&cell).await;
    viewer.chunk().await;
    // A mesh that does not take the lease back holds stage0 up on its way out, so that there is somebody to refuse.
    let (bus, id) = (cell.bus("gateway").await, cell.id());
    cell.signal("leader", Signal::Stop);
    let refusal = async {
        loop {
            let request = creation(&json!({"prompts": [{"text": "a fox"}]}));
            match Viewer::create(&bus, &id, request).await {
                // Not yet.
                Ok(_) => {}
                Err(error) if error.reason == Reason::TooManySessions => {}
                Err(error) => break error,
            }
        }
    };
    let (_, error) = tokio::join!(operator.order(Ops::Drain, ""), refusal);
    assert_eq!((error.reason, error.class().http_status()), (Reason::Draining, 503), "{error}");
    assert_eq!(cell.exit("stage0", MINUTE).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_cuts_the_one_session_it_names() {
    let cell = Cell::builder().ready().await;
    let operator = Operator::connect(&cell).await;
    let (mut cut, mut other) = (viewer(&cell).await, viewer(&cell).await);
    let first = cut.chunks_until(2).await.remove(0);
    let before = other.chunks_until(2).await.pop().unwrap();

    let accepted = operator.order(Ops::Reset, &json!({"session": cut.session}).to_string()).await;
    assert_eq!(accepted["sessions"], json!([cut.session]));
    assert!(accepted["within_ms"].as_u64() > Some(0), "{accepted}");
    let again = cut.next_history().await;
    assert_eq!((first.chunk_index, again.cache_epoch), (again.chunk_index, first.cache_epoch.next()));
    assert_eq!(again.latents, first.latents, "the same seed and prompt begin with the same chunk");
    let after = other.chunks_until(before.chunk_index.0 + 3).await;
    assert!(after.iter().all(|chunk| chunk.cache_epoch == before.cache_epoch), "the other goes on");

    let accepted = operator.order(Ops::Reset, "").await;
    let named = accepted["sessions"].as_array().unwrap();
    assert_eq!(named.len(), 2);
    assert_eq!(cut.next_history().await.cache_epoch, again.cache_epoch.next());
    assert_eq!(other.next_history().await.cache_epoch, before.cache_epoch.next());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_stage0_and_the_mesh_with_code_0() {
    let cell = Cell::builder().ready().await;
    let operator = Operator::connect(&cell).await;
    let mut viewer = viewer(&cell).await;
    viewer.chunk().await;
    let asked = Instant::now();
    let (first, second) = tokio::join!(operator.order(Ops::Shutdown, ""), operator.order(Ops::Shutdown, ""));
    assert_eq!(first, second, "asked twice, answered the same");
    assert!(first["will"].as_str().unwrap().contains("mesh"), "{first}");
    assert_eq!(ended(&mut viewer).await, Some(Reason::Draining));
    let bound = Duration::from_millis(first["within_ms"].as_u64().unwrap());
    for name in ["stage0", "leader", "worker1"] {
        let status = cell.exit(name, MINUTE).await;
        wait::assert_within(name, asked.elapsed(), bound);
        assert_eq!(status.code(), Some(0), "{name}: {status}");
    }
    assert!(cell.pid("gateway").is_some());
}

/// Every dump of a process, header and events as text.
fn dumps(cell: &Cell, of: &str) -> Vec<(Value, String)> {
    let entries = std::fs::read_dir(cell.flight_dir()).into_iter().flatten();
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    let parsed = texts.filter_map(|text| {
        let (header, events) = text.split_once('\n')?;
        Some((serde_json::from_str::<Value>(header).ok()?, events.to_owned()))
    });
    parsed.filter(|(header, _)| header["process"] == of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_leaves_the_call_in_the_flight_recorders_of_the_others() {
    let mut cell = Cell::builder().ready().await;
    let operator = Operator::connect(&cell).await;
    let mut viewer = viewer(&cell).await;
    viewer.chunks_until(2).await;
    cell.signal("worker1", Signal::Kill);
    cell.exit("worker1", Duration::from_secs(5)).await;
    let session = format!("session {}", viewer.session);
    let (header, events) = wait::until("a dump of the leader", Duration::from_secs(20), || async {
        dumps(&cell, "mesh-leader")
            .into_iter()
            .find(|(header, _)| header["why"].to_string().contains("rank 1"))
    })
    .await;
    assert_eq!(header["pid"], cell.pid("leader").unwrap());
    assert!(header["started_unix_ms"].as_u64() > Some(1_700_000_000_000), "{header}");
    let called = |line: &str| {
        line.contains(r#""kind":"in""#) && line.contains("infer call") && line.contains(&session)
    };
    assert!(events.lines().any(called), "{events}");
    assert!(
        events.lines().any(|line| line.contains(r#""kind":"fault""#) && line.contains("rank 1")),
        "{events}"
    );
    wait::until("a dump of stage0", Duration::from_secs(20), || async {
        dumps(&cell, "stage0").into_iter().find(|(_, events)| events.contains(&session))
    })
    .await;

    cell.start_process("worker1");
    let status = status_where(&operator, "the mesh with its new worker", |status| {
        let workers = processes(status, "tp_worker");
        status["ready"] == true && workers.len() == 1 && workers[0]["restarts"] == 1
    })
    .await;
    let worker = process(&status, "tp_worker");
    assert_eq!(worker["pid"], cell.pid("worker1").unwrap());
    let fault = &process(&status, "mesh_leader")["mesh"]["last_fault"];
    assert!(fault["what"].as_str().unwrap().contains("rank 1"), "{fault}");
    assert!(number(&fault["age_ms"]) < 60_000.0, "{fault}");
}

/// The newest events of a process's recorder, as text.
fn recorded(status: &Value, role: &str) -> Vec<String> {
    let events = process(status, role)["recorder"]["events"].as_array().cloned().unwrap_or_default();
    events.iter().map(|event| event["what"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_brings_the_recent_events_of_each_process_that_lives() {
    let cell = Cell::builder().ready().await;
    let operator = Operator::connect(&cell).await;
    let mut viewer = viewer(&cell).await;
    // Enough for the recorders to be full.
    viewer.chunks_until(60).await;
    let status = operator.order(Ops::Status, r#"{"recorder": true}"#).await;
    for (role, event) in
        [("stage0", "send infer call"), ("mesh_leader", "run plan"), ("tp_worker", "go for plan")]
    {
        let events = recorded(&status, role);
        assert!(events.iter().any(|what| what.contains(event)), "{role}: {events:?}");
        let recorder = &process(&status, role)["recorder"];
        assert_eq!(recorder["header"]["instance"], process(&status, role)["instance"]);
    }
    let quiet = operator.status().await;
    assert!(process(&quiet, "stage0").get("recorder").is_none(), "only if asked for");

    cell.signal("stage0", Signal::Kill);
    status_where(&operator, "the gateway's answer", |status| status["answered_by"]["role"] == "gateway")
        .await;
    let status = operator.order(Ops::Status, r#"{"recorder": true}"#).await;
    assert_eq!(process(&status, "stage0")["state"], "silent");
    assert!(recorded(&status, "stage0").is_empty());
    assert!(recorded(&status, "mesh_leader").iter().any(|what| what.contains("infer call")), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_costs_a_call_its_measured_budget_and_the_client_is_told() {
    let floor = 700.0;
    let cell = Cell::builder().env("stage0", "KINEMESH_STAGE0__CALL_BUDGET_FLOOR_MS", "700").ready().await;
    let operator = Operator::connect(&cell).await;
    let mut viewer = viewer(&cell).await;
    viewer.chunks_until(20).await;
    let status = operator.status().await;
    let stage0 = process(&status, "stage0");
    assert_budget_follows(stage0, floor);
    let budget = Duration::from_secs_f64(number(&stage0["stage0"]["call_budget_ms"]) / 1e3);
    assert!(budget < Duration::from_secs(10), "the ceiling says nothing of what was measured: {status}");

    cell.signal("leader", Signal::Stop);
    let stopped = Instant::now();
    let told = viewer
        .event_where(|event| match event {
            Event::Error { error } => Some(error.clone()),
            Event::State { error: Some(error), .. } => Some(error.clone()),
            _ => None,
        })
        .await;
    wait::assert_within("the watchdog", stopped.elapsed(), budget + Duration::from_secs(1));
    // A NOOP that goes unanswered tells before a budget that a busy machine has made longer.
    assert!(matches!(told.reason, Reason::BudgetSpent | Reason::RankLost), "{told:?}");
    let status = operator.status().await;
    assert_eq!(process(&status, "stage0")["stage0"]["link"], "quarantined", "{status}");
}
