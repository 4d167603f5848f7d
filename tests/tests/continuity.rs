//! A session outlives the processes that make it: its stage0, its gateway, the broker.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::time::{Duration, Instant};

use contract::event::{ChunkReport, Event};
use contract::status::Role;
use contract::{CellId, ChunkIndex, Digest, Incarnation, Reason};
use serde_json::{Value, json};
use system_tests::session::{in_state, session, streaming};
use system_tests::{Cell, Fault, Signal, Viewer, python, wait};

/// Of the broker.
const OUTAGE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(100);

fn fox() -> Value {
    json!({"prompts": [{"text": "a red fox", "weight": 1.0}], "base_seed": 7})
}

/// What stage0 reports of its sessions.
async fn incarnations(cell: &Cell) -> Vec<u64> {
    let bus = cell.bus("ops").await;
    let subject = contract::subjects::ops(&CellId::default(), contract::subjects::Ops::Status);
    let client = bus.jetstream().client();
    let answer = client.request(subject, "".into());
    let answer = wait::bounded("the cell's status", Duration::from_secs(5), answer).await.unwrap();
    let report: Value = serde_json::from_slice(&answer.payload).unwrap();
    report["sessions"].as_array().unwrap().iter().map(|s| s["incarnation"].as_u64().unwrap()).collect()
}

fn of_type<'a>(seen: &'a Value, kind: &str) -> Vec<&'a Value> {
    seen["messages"].as_array().unwrap().iter().filter(|message| message["type"] == kind).collect()
}

/// Session states that the client was told, with the reason where there is one.
fn states(seen: &Value) -> Vec<(String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let state = |message: &&Value| (text(&message["state"]).unwrap(), text(&message["error"]["reason"]));
    of_type(seen, "session_state").iter().map(state).collect()
}

fn assert_played_on(seen: &Value, within: Duration) {
    assert_eq!(seen["ended"], Value::Null, "the track ended: {seen}");
    assert!(of_type(seen, "stream_stopped").is_empty(), "{seen}");
    let gap = Duration::from_secs_f64(seen["longest_gap"].as_f64().unwrap());
    wait::assert_within("the longest time without a frame", gap, within);
}

fn index(report: &Value) -> u64 {
    report["chunk_index"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_stage0_costs_two_chunks_at_most_and_the_connection_never_knew() {
    let mut cell = Cell::builder().ready().await;
    let url = cell.url();
    let args = ["--url", &url, "--after", "continued", "--frames", "100"];
    let watcher = python::start("webrtc_view.py", &args);
    let id = streaming(&cell, 60).await;
    let owl = json!({"prompts": [{"text": "an owl", "weight": 1.0}], "kv_cache_attention_bias": 0.5});
    assert_eq!(cell.http().post("/api/v1/session/parameters", &owl).await.status, 200);
    cell.signal("stage0", Signal::Kill);
    let killed = Instant::now();
    in_state(&cell, "recovering").await;
    wait::assert_within("the client is told", killed.elapsed(), Duration::from_secs(2));
    cell.start_process("stage0");
    in_state(&cell, "streaming").await;
    assert_eq!(incarnations(&cell).await, [2]);
    let parameters = cell.http().get("/api/v1/session/parameters").await.json();
    assert_eq!(parameters["parameters"]["kv_cache_attention_bias"], 0.5, "{parameters}");
    let seen = watcher.finish(PATIENCE).await;
    assert_played_on(&seen, Duration::from_secs(6));
    assert_eq!(seen["session"].as_str(), Some(id.as_str()));
    let told = states(&seen);
    let recovering = ("recovering".to_owned(), Some("recovering".to_owned()));
    let at = told.iter().position(|state| *state == recovering).expect("recovering is told");
    assert!(told[at..].contains(&("streaming".to_owned(), None)), "{told:?}");

    let continued = of_type(&seen, "continued");
    let [continued] = continued[..] else { panic!("once: {continued:?}") };
    assert_eq!(continued["restored"], true, "{continued}");
    assert!(continued["lost_chunks"].as_u64().unwrap() <= 2, "{continued}");
    // Chunks go on where the stored state was, in a later cache epoch, without a gap of their own.
    let reports = of_type(&seen, "chunk");
    let (before, after): (Vec<_>, Vec<_>) =
        reports.into_iter().partition(|report| report["at"].as_f64() < continued["at"].as_f64());
    let indices: Vec<_> = after.iter().map(|report| index(report)).collect();
    let expected: Vec<_> = (index(continued)..).take(indices.len()).collect();
    assert!(indices.len() >= 2 && indices == expected, "{indices:?} after {continued}");
    let epoch = |report: &Value| report["cache_epoch"].as_u64().unwrap();
    assert!(before.iter().all(|report| epoch(report) < epoch(continued)), "{continued}");
    assert_eq!(after[0]["frames"], 12, "no history begins");
}

async fn digests(viewer: &mut Viewer, last: u64) -> Vec<Digest> {
    let reports = viewer.chunks_until(last).await;
    reports.into_iter().map(|report| report.latents).collect()
}

/// Where the next life begins, and its first chunk.
async fn continued(viewer: &mut Viewer) -> (ChunkIndex, bool, ChunkReport) {
    let (chunk, restored) = viewer
        .event_where(|event| match event {
            Event::Continued { chunk_index, restored, .. } => Some((*chunk_index, *restored)),
            _ => None,
        })
        .await;
    (chunk, restored, viewer.chunk().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_session_makes_the_chunk_that_the_dead_one_would_have_made() {
    let mut cell = Cell::builder().ready().await;
    let bus = cell.bus("gateway").await;
    // A transition is under way when stage0 dies, so that its state is part of what must be restored.
    let mut parameters = fox();
    parameters["transition"] =
        json!({"target_prompts": [{"text": "a blue whale", "weight": 1.0}], "num_steps": 30});
    let mut whole = Viewer::open(&bus, &cell.id(), &parameters).await;
    let expected = digests(&mut whole, 12).await;
    whole.end().await;

    let mut viewer = Viewer::open(&bus, &cell.id(), &parameters).await;
    viewer.chunks_until(4).await;
    cell.signal("stage0", Signal::Kill);
    cell.exit("stage0", Duration::from_secs(5)).await;
    let http = cell.http();
    wait::until("the loss is noticed", Duration::from_secs(20), || async {
        (http.get("/ready").await.status == 503).then_some(())
    })
    .await;
    cell.start_process("stage0");
    cell.wait_ready(Duration::from_secs(60)).await;
    let mut viewer = viewer.again(&cell.id()).await.unwrap();
    assert_eq!(viewer.created.incarnation, Incarnation(2));
    let (chunk, restored, first) = continued(&mut viewer).await;
    assert!(restored && chunk >= ChunkIndex(4), "{chunk}");
    assert_eq!((first.chunk_index, first.frames), (chunk, 12));
    assert_eq!(first.latents, expected[usize::try_from(chunk.0).unwrap()], "chunk {chunk}");
    viewer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_that_runs_is_replaced_only_by_a_later_one_with_its_token() {
    let cell = Cell::builder().ready().await;
    let bus = cell.bus("gateway").await;
    let request = system_tests::viewer::creation(&fox());
    let mut viewer = Viewer::create(&bus, &cell.id(), request.clone()).await.unwrap();
    viewer.chunks_until(2).await;
    let twice = Viewer::create(&bus, &cell.id(), request.clone()).await.unwrap();
    assert_eq!(twice.created, viewer.created, "a message that was sent twice");
    let other =
        contract::session::CreateSession { bitrate_kbps: request.bitrate_kbps + 1, ..request.clone() };
    let refused = Viewer::create(&bus, &cell.id(), other).await.err().unwrap();
    assert_eq!(refused.reason, Reason::SessionExists, "not what made it");
    let stolen = contract::session::CreateSession {
        incarnation: Incarnation(2),
        resume: Digest::of(&[b"a guess"]),
        ..request
    };
    assert_eq!(Viewer::create(&bus, &cell.id(), stolen).await.err().unwrap().reason, Reason::BadToken);
    let mut again = viewer.again(&cell.id()).await.unwrap();
    let (chunk, restored, first) = continued(&mut again).await;
    assert!(restored && chunk >= ChunkIndex(2) && first.chunk_index == chunk, "{chunk}");
    again.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_a_stored_state_begins_anew_and_says_so() {
    let cell = Cell::builder().ready().await;
    let bus = cell.bus("gateway").await;
    let request = contract::session::CreateSession {
        incarnation: Incarnation(2),
        ..system_tests::viewer::creation(&fox())
    };
    let mut viewer = Viewer::create(&bus, &cell.id(), request).await.unwrap();
    let (chunk, restored, first) = continued(&mut viewer).await;
    assert!(!restored && chunk == ChunkIndex(0), "{chunk}");
    assert_eq!((first.chunk_index, first.frames), (ChunkIndex(0), 9));
    viewer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage0_that_stood_still_goes_on_in_the_same_life() {
    let cell = Cell::builder().ready().await;
    let url = cell.url();
    let watcher = python::start(
        "webrtc_view.py",
        &["--url", &url, "--after", "recovering,streaming", "--frames", "60"],
    );
    streaming(&cell, 30).await;
    cell.signal("stage0", Signal::Stop);
    in_state(&cell, "recovering").await;
    cell.signal("stage0", Signal::Cont);
    in_state(&cell, "streaming").await;
    assert_eq!(incarnations(&cell).await, [1]);
    let seen = watcher.finish(PATIENCE).await;
    assert_played_on(&seen, Duration::from_secs(6));
    assert!(of_type(&seen, "continued").is_empty(), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage0_that_was_replaced_while_it_stood_still_is_fenced_and_read_by_nobody() {
    let mut cell = Cell::builder().ready().await;
    let url = cell.url();
    let watcher =
        python::start("webrtc_view.py", &["--url", &url, "--after", "continued", "--frames", "150"]);
    streaming(&cell, 30).await;
    cell.signal("stage0", Signal::Stop);
    cell.start_beside("stage0b", "stage0", &[("KINEMESH_HTTP__PORT", "0")]);
    in_state(&cell, "recovering").await;
    in_state(&cell, "streaming").await;
    assert_eq!(incarnations(&cell).await, [2]);
    cell.signal("stage0", Signal::Cont);
    let status = cell.exit("stage0", Duration::from_secs(15)).await;
    assert_eq!(status.code(), Some(4), "{status}");
    assert_eq!(incarnations(&cell).await, [2]);
    let seen = watcher.finish(PATIENCE).await;
    assert_played_on(&seen, Duration::from_secs(8));
    // One life after the other: nothing of the first one came through once the second had begun.
    let continued = of_type(&seen, "continued");
    let [continued] = continued[..] else { panic!("once: {continued:?}") };
    let later =
        of_type(&seen, "chunk").into_iter().filter(|chunk| chunk["at"].as_f64() > continued["at"].as_f64());
    assert!(later.map(index).zip(index(continued)..).all(|(got, expected)| got == expected), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage0_that_is_asked_to_stop_hands_its_sessions_over() {
    let mut cell = Cell::builder().ready().await;
    let url = cell.url();
    let watcher = python::start("webrtc_view.py", &["--url", &url, "--after", "continued", "--frames", "40"]);
    streaming(&cell, 30).await;
    cell.signal("stage0", Signal::Term);
    assert_eq!(cell.exit("stage0", Duration::from_secs(10)).await.code(), Some(0));
    cell.start_process("stage0");
    let seen = watcher.finish(PATIENCE).await;
    assert_played_on(&seen, Duration::from_secs(6));
    assert_eq!(of_type(&seen, "continued")[0]["restored"], true, "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_goes_and_comes_back_under_a_stream() {
    let mut cell = Cell::builder()
        // The outage is longer than a session waits for a viewer, who cannot be heard meanwhile.
        .env("stage0", "KINEMESH_STAGE0__PAUSE_WITHOUT_VIEWER_S", "6")
        .env("stage0", "KINEMESH_STAGE0__END_WITHOUT_VIEWER_S", "7")
        .ready()
        .await;
    let url = cell.url();
    let args = ["--url", &url, "--after", "recovering,streaming", "--frames", "60", "--patience", "90"];
    let watcher = python::start("webrtc_view.py", &args);
    let id = streaming(&cell, 30).await;
    cell.signal(system_tests::cell::BROKER, Signal::Kill);
    cell.exit(system_tests::cell::BROKER, Duration::from_secs(5)).await;
    in_state(&cell, "recovering").await;
    let asked = Instant::now();
    let answer = cell.http().post("/api/v1/session/parameters", &json!({"base_seed": 5})).await;
    assert_eq!(answer.status, 503, "{}", answer.text);
    wait::assert_within("a request while the broker is away", asked.elapsed(), Duration::from_secs(1));
    // Longer than the lease and the leader's key live.
    tokio::time::sleep(OUTAGE).await;
    cell.start_process(system_tests::cell::BROKER);
    cell.wait_ready(Duration::from_secs(20)).await;
    in_state(&cell, "streaming").await;
    assert_eq!(session(&cell).await.unwrap().0, id);
    assert_eq!(incarnations(&cell).await, [1]);
    let seen = watcher.finish(PATIENCE).await;
    assert_played_on(&seen, OUTAGE + Duration::from_secs(8));
    let told = states(&seen);
    let away = ("recovering".to_owned(), Some("broker_unavailable".to_owned()));
    let at = told.iter().position(|state| *state == away).expect("the client is told");
    assert!(told[at..].contains(&("streaming".to_owned(), None)), "{told:?}");
    let indices: Vec<_> = of_type(&seen, "chunk").into_iter().map(index).collect();
    assert!(indices.is_sorted(), "the history goes on: {indices:?}");
    for name in ["gateway", "stage0", "leader", "worker1"] {
        assert!(cell.pid(name).is_some(), "{name} ended");
    }
    let epoch = |report: &Value| report["mesh_epoch"].as_u64();
    let epochs: Vec<_> = of_type(&seen, "chunk").into_iter().map(epoch).collect();
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "the mesh did not form again: {epochs:?}");
}

/// A client that connects again, with its token, when its stream has ended.
fn one_that_comes_back(cell: &Cell) -> python::Script {
    let url = cell.url();
    let args =
        ["--url", &url, "--after", "never", "--frames", "20", "--patience", "2", "--resumed-frames", "30"];
    python::start("webrtc_view.py", &args)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_gateway_died_goes_on_with_its_session() {
    let mut cell = Cell::builder().ready().await;
    let watcher = one_that_comes_back(&cell);
    let id = streaming(&cell, 30).await;
    cell.signal("gateway", Signal::Kill);
    cell.exit("gateway", Duration::from_secs(5)).await;
    cell.start_process("gateway");
    let seen = watcher.finish(PATIENCE).await;
    let (first, second) = (&seen["first"], &seen["second"]);
    assert_eq!((&first["session"], &second["session"]), (&json!(id), &json!(id)));
    assert_eq!((&second["frames"], &second["ended"]), (&json!(30), &Value::Null), "{second}");
    let last = of_type(first, "chunk").last().map(|chunk| index(chunk)).unwrap();
    let continued = of_type(second, "continued");
    assert!(continued[0]["restored"] == true && index(continued[0]) >= last, "{continued:?} after {last}");
    // Reports of chunks from before the channel was open are not kept for it.
    let indices: Vec<_> = of_type(second, "chunk").into_iter().map(index).collect();
    assert!(indices.is_sorted() && indices[0] >= index(continued[0]), "{indices:?} after {continued:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_resume_token_is_refused_and_disturbs_nobody() {
    let cell = Cell::builder().ready().await;
    let url = cell.url();
    let watcher = python::start("webrtc_view.py", &["--url", &url, "--frames", "80"]);
    let id = streaming(&cell, 10).await;
    let token = format!("{id}.{:032x}", 1);
    let refused = python::run("webrtc_view.py", &["--url", &url, "--resume", &token], PATIENCE).await;
    assert_eq!(
        (&refused["status"], &refused["answer"]["error"]["reason"]),
        (&json!(401), &json!("bad_token"))
    );
    let seen = watcher.finish(PATIENCE).await;
    assert_eq!((&seen["frames"], &seen["ended"]), (&json!(80), &Value::Null), "{seen}");
}

/// Hurts a process of a supervised cell while a client streams: it is told, and frames flow again.
async fn client_outlives(process: &str, fault: Fault, within: Duration) {
    let cell = Cell::builder().supervised().ready().await;
    let url = cell.url();
    let args = ["--url", &url, "--after", "recovering,streaming", "--frames", "60"];
    let watcher = python::start("webrtc_view.py", &args);
    let id = streaming(&cell, 30).await;
    fault.strike(&cell, process).await;
    let seen = watcher.finish(PATIENCE).await;
    assert_played_on(&seen, within);
    assert_eq!(seen["session"].as_str(), Some(id.as_str()));
    let told: Vec<String> = states(&seen).into_iter().map(|(state, _)| state).collect();
    let at = told.iter().position(|state| state == "recovering").expect("recovering is told");
    assert!(told[at..].contains(&"streaming".to_owned()), "{told:?}");
    // The session is the same life of the same history: no chunk is left out, or shown twice.
    let indices: Vec<_> = of_type(&seen, "chunk").into_iter().map(index).collect();
    let expected: Vec<_> = (indices[0]..).take(indices.len()).collect();
    assert_eq!(indices, expected);
    assert!(of_type(&seen, "continued").is_empty(), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_of_a_killed_worker_and_its_connection_never_knew() {
    client_outlives("worker1", Fault::Kill, Duration::from_secs(6)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_of_a_killed_leader_and_its_connection_never_knew() {
    client_outlives("leader", Fault::Kill, Duration::from_secs(7)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_of_a_leader_that_stands_still_and_its_connection_never_knew() {
    client_outlives("leader", Fault::Pause(Duration::from_secs(3)), Duration::from_secs(9)).await;
}

/// A fault that costs frames, and that nobody has to be told of: the connection stays, and the session goes on.
async fn client_bears(process: &str, fault: Fault, within: Duration) {
    let cell = Cell::builder().supervised().ready().await;
    let url = cell.url();
    let watcher = python::start("webrtc_view.py", &["--url", &url, "--frames", "300"]);
    streaming(&cell, 30).await;
    let before = cell.pids();
    fault.strike(&cell, process).await;
    let seen = watcher.finish(PATIENCE).await;
    assert_played_on(&seen, within);
    assert_eq!(seen["frames"], 300, "{seen}");
    assert_eq!(before, cell.pids(), "{:?}", cell.ends());
    assert!(of_type(&seen, "continued").is_empty(), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stands_still_goes_on_with_the_connection_it_had() {
    client_bears("gateway", Fault::Pause(Duration::from_secs(3)), Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_gateway_costs_frames_and_nothing_else() {
    client_bears("gateway", Fault::Slow(Duration::from_secs(3)), Duration::from_secs(4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_stage0_costs_frames_and_nothing_else() {
    client_bears("stage0", Fault::Slow(Duration::from_secs(3)), Duration::from_secs(4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_asked_to_stop_says_so_and_its_session_can_be_gone_on_with() {
    let mut cell = Cell::builder().ready().await;
    let watcher = one_that_comes_back(&cell);
    let id = streaming(&cell, 30).await;
    cell.signal("gateway", Signal::Term);
    assert_eq!(cell.exit("gateway", Duration::from_secs(10)).await.code(), Some(0));
    cell.start_process("gateway");
    let seen = watcher.finish(PATIENCE).await;
    let (first, second) = (&seen["first"], &seen["second"]);
    let stopped = of_type(first, "stream_stopped");
    assert!(!stopped.is_empty() && stopped[0]["error_message"].is_string(), "{first}");
    assert_eq!((&first["session"], &second["session"]), (&json!(id), &json!(id)));
    assert_eq!((&second["frames"], &second["ended"]), (&json!(30), &Value::Null), "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_leaves_a_session_that_pauses_ends_and_gives_its_place_back() {
    let cell = Cell::builder()
        .env("stage0", "KINEMESH_STAGE0__MAX_SESSIONS", "1")
        .env("stage0", "KINEMESH_STAGE0__PAUSE_WITHOUT_VIEWER_S", "4")
        .env("stage0", "KINEMESH_STAGE0__END_WITHOUT_VIEWER_S", "60")
        .ready()
        .await;
    let url = cell.url();
    let watcher = python::start("webrtc_view.py", &["--url", &url, "--frames", "100000"]);
    streaming(&cell, 30).await;
    // A dropped script is killed.
    drop(watcher);
    in_state(&cell, "paused").await;
    wait::until("no session", Duration::from_secs(60), || async {
        let stage0 = cell.status(|status| status.role == Role::Stage0).await.stage0?;
        (session(&cell).await.is_none() && stage0.sessions == 0).then_some(())
    })
    .await;
    let seen = python::run("webrtc_view.py", &["--url", &url, "--frames", "20"], PATIENCE).await;
    assert_eq!(seen["frames"], 20, "{seen}");
}
