//! Starting, stopping, and dying: each process tells the truth about itself and its peers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::time::{Duration, Instant};

use contract::envelope::{Action, EnvelopeV1, Reply};
use contract::event::{Event, SessionState};
use contract::{Budget, CONTRACT_VERSION, CallId, Deadline, InstanceId, MeshEpoch, Reason, subjects};
use serde_json::json;
use system_tests::cell::BROKER;
use system_tests::{Cell, Signal, Viewer, python, wait};

const SERVICES: [&str; 4] = ["gateway", "stage0", "leader", "worker1"];

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_live_at_once_and_ready_when_the_mesh_is() {
    let mut cell = Cell::builder().without("leader").start().await;
    let http = cell.http();
    let live =
        wait::until("/live", Duration::from_secs(10), || async { http.try_get("/live").await.ok() }).await;
    assert_eq!(live.status, 200);
    let waiting = wait::until("a reason", Duration::from_secs(20), || async {
        let answer = http.get("/ready").await;
        assert_eq!(answer.status, 503, "{}", answer.text);
        let text = answer.json()["waiting_for"].as_str().unwrap_or_default().to_owned();
        text.contains("mesh").then_some(text)
    })
    .await;
    assert!(waiting.contains("mesh"), "{waiting}");
    cell.start_process("leader");
    cell.wait_ready(Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_stage0_ends_the_stream_with_a_message_and_readiness_within_2_s() {
    // Nobody comes to take its place.
    let mut cell = Cell::builder().env("gateway", "KINEMESH_GATEWAY__RECOVERY_S", "1").ready().await;
    let url = cell.url();
    let watcher = python::start("webrtc_view.py", &["--url", &url, "--frames", "20", "--until-stopped"]);
    let http = cell.http();
    wait::until("a streaming session", Duration::from_secs(60), || async {
        let sessions = http.get("/api/v1/session/metrics").await.json();
        let frames = sessions["sessions"].as_object()?.values().next()?["frames_out"].as_u64()?;
        (frames > 20).then_some(())
    })
    .await;
    cell.signal("stage0", Signal::Kill);
    let killed = Instant::now();
    wait::until("/ready 503", Duration::from_secs(20), || async {
        (http.get("/ready").await.status == 503).then_some(())
    })
    .await;
    wait::assert_within("/ready", killed.elapsed(), Duration::from_secs(2));
    let seen = watcher.finish(Duration::from_secs(60)).await;
    let messages = seen["messages"].as_array().unwrap();
    let stopped =
        messages.iter().find(|message| message["type"] == "stream_stopped").expect("stream_stopped");
    assert!(stopped["error_message"].as_str().is_some_and(|text| !text.is_empty()), "{stopped}");
    assert_eq!(http.get("/live").await.status, 200);
    cell.start_process("stage0");
    cell.wait_ready(Duration::from_secs(60)).await;
}

async fn stops_alone(name: &str) {
    let cell = Cell::builder().ready().await;
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &json!({"prompts": [{"text": "a fox"}]})).await;
    viewer.chunk().await;
    for peer in SERVICES {
        if peer != name {
            cell.signal(peer, Signal::Stop);
        }
    }
    cell.signal(name, Signal::Term);
    let asked = Instant::now();
    let status = cell.exit(name, Duration::from_secs(30)).await;
    wait::assert_within(name, asked.elapsed(), Duration::from_secs(5));
    assert_eq!(status.code(), Some(0), "{name}: {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_gateway_while_every_peer_is_stopped() {
    stops_alone("gateway").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_stage0_while_every_peer_is_stopped() {
    stops_alone("stage0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_leader_while_every_peer_is_stopped() {
    stops_alone("leader").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_worker_while_every_peer_is_stopped() {
    stops_alone("worker1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_whole_stack_while_the_broker_stands_still() {
    let cell = Cell::builder().ready().await;
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &json!({"prompts": [{"text": "a fox"}]})).await;
    viewer.chunk().await;
    cell.signal(BROKER, Signal::Stop);
    let asked = Instant::now();
    for name in SERVICES {
        cell.signal(name, Signal::Term);
    }
    for name in SERVICES {
        let status = cell.exit(name, Duration::from_secs(30)).await;
        wait::assert_within(name, asked.elapsed(), Duration::from_secs(5));
        assert_eq!(status.code(), Some(0), "{name}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_stage0_costs_a_client_its_budget_and_no_more() {
    let cell = Cell::builder().ready().await;
    let http = cell.http();
    let url = cell.url();
    let watcher = python::start("webrtc_view.py", &["--url", &url, "--frames", "10", "--until-stopped"]);
    wait::until("a session", Duration::from_secs(60), || async {
        let sessions = http.get("/api/v1/session/metrics").await.json();
        (!sessions["sessions"].as_object()?.is_empty()).then_some(())
    })
    .await;
    cell.signal("stage0", Signal::Stop);
    let asked = Instant::now();
    let answer = http.post("/api/v1/session/parameters", &json!({"base_seed": 5})).await;
    wait::assert_within("the refusal", asked.elapsed(), Duration::from_secs(2));
    assert!([503, 504].contains(&answer.status), "{}", answer.text);
    assert_eq!(http.get("/health").await.status, 200);
    drop(watcher);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_leader_costs_its_caller_the_budget_and_no_more() {
    let cell = Cell::builder().without("stage0").start().await;
    let bus = cell.bus("stage0").await;
    let epoch = mesh_epoch(&cell).await;
    cell.signal("leader", Signal::Stop);
    let asked = Instant::now();
    let budget = Budget::from_secs(1);
    let call = EnvelopeV1 {
        version: CONTRACT_VERSION,
        call_id: CallId(1),
        mesh_epoch: epoch,
        controller: InstanceId::random(),
        lease: None,
        action: Action::Hello,
    };
    let deadline = Deadline::after(asked, budget);
    let answer = bus.request::<_, Reply>(&subjects::mesh_call(&cell.id(), epoch), &call, deadline).await;
    assert_eq!(answer.unwrap_err().reason, Reason::BudgetSpent);
    wait::assert_within("the time-out", asked.elapsed(), budget.duration() + Duration::from_secs(1));
}

/// The epoch that the leader publishes once the mesh is ready.
async fn mesh_epoch(cell: &Cell) -> MeshEpoch {
    let bus = cell.bus("gateway").await;
    let mut statuses = bus.subscribe(&subjects::cell_status(&cell.id()), 64).await.unwrap();
    wait::bounded("a ready mesh", Duration::from_secs(60), async {
        loop {
            let status: contract::status::ProcessStatus = statuses.next().await.unwrap().decode().unwrap();
            let leads = status.role == contract::status::Role::MeshLeader && status.ready;
            if let (true, Some(epoch)) = (leads, status.mesh.and_then(|mesh| mesh.epoch)) {
                return epoch;
            }
        }
    })
    .await
}

/// What a gateway that was killed leaves behind: a session whose viewer nobody speaks for any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_nobody_watches_gives_its_place_to_the_next_viewer() {
    let cell = Cell::builder()
        .env("stage0", "KINEMESH_STAGE0__MAX_SESSIONS", "1")
        .env("stage0", "KINEMESH_STAGE0__PAUSE_WITHOUT_VIEWER_S", "1")
        .ready()
        .await;
    let bus = cell.bus("gateway").await;
    let fox = json!({"prompts": [{"text": "a fox"}]});
    let mut orphan = Viewer::open(&bus, &cell.id(), &fox).await;
    orphan
        .event_where(|event| matches!(event, Event::State { state: SessionState::Paused, .. }).then_some(()))
        .await;
    let mut next = Viewer::open(&bus, &cell.id(), &fox).await;
    next.chunk().await;
    let error = orphan
        .event_where(|event| match event {
            Event::State { state: SessionState::Ended, error } => Some(error.clone()),
            _ => None,
        })
        .await;
    assert!(error.is_some_and(|error| error.message.contains("nobody")), "the orphan is told why");
}
