//! Messages between stage0, leader and worker are lost, come twice, or come again later: frames flow on, and nothing is
//! done twice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, HeaderMap};
use contract::event::SessionState;
use contract::status::{ProcessStatus, Role};
use contract::{ChunkIndex, Digest};
use serde_json::{Value, json};
use system_tests::meddling::{self, Caught};
use system_tests::operator::process;
use system_tests::{Cell, Meddler, Message, Operator, Signal, Trace, Viewer, wait};

const SERVICES: [&str; 4] = ["gateway", "stage0", "leader", "worker1"];
/// A mesh makes four runs before it is ready: three warm-up chunks and the canary.
const WARM_UP: u64 = 4;

fn fox() -> Value {
    json!({"prompts": [{"text": "a red fox"}]})
}

fn is_infer(message: &Message) -> bool {
    message.subject.ends_with(".mesh.call") && message.mentions("latents_in")
}

async fn behind_proxies() -> Cell {
    let cell = SERVICES.iter().fold(Cell::builder(), |cell, service| cell.behind_proxy(service));
    cell.ready().await
}

async fn streaming(cell: &Cell) -> Viewer {
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &fox()).await;
    viewer.chunks_until(2).await;
    viewer
}

/// Meddles with what crosses a process's proxy, and watches until `count` messages were met and frames have flowed since.
async fn suffer(
    cell: &Cell,
    viewer: &mut Viewer,
    process: &str,
    (meddler, caught): (Meddler, Caught),
    count: usize,
) -> Trace {
    cell.proxy(process).meddle(meddler);
    viewer.suffer(caught.reach(count)).await
}

fn assert_flows_on(what: &str, trace: &Trace, lost: u64) {
    assert!(!trace.ended, "{what}: the session ended: {:?}", trace.errors);
    assert!(trace.chunks_lost() <= lost, "{what}: {} chunks lost: {trace:?}", trace.chunks_lost());
    let gap = trace.again_after().unwrap();
    wait::assert_within(&format!("{what}: frames again"), gap, Duration::from_secs(5));
}

/// No chunk was made twice or left out, and each is the one that an undisturbed session makes.
async fn assert_as_undisturbed(what: &str, cell: &Cell, trace: &Trace) {
    let indices: Vec<_> = trace.chunks.iter().map(|(_, chunk)| chunk.chunk_index.0).collect();
    let expected: Vec<_> = (indices[0]..).take(indices.len()).collect();
    assert_eq!(indices, expected, "{what}");
    let made: BTreeMap<ChunkIndex, Digest> =
        trace.chunks.iter().map(|(_, chunk)| (chunk.chunk_index, chunk.latents.clone())).collect();
    let mut undisturbed = Viewer::open(&cell.bus("gateway").await, &cell.id(), &fox()).await;
    let chunks = undisturbed.chunks_until(*indices.last().unwrap()).await;
    let plain = chunks.into_iter().map(|chunk| (chunk.chunk_index, chunk.latents));
    assert_eq!(made, plain.filter(|(index, _)| made.contains_key(index)).collect(), "{what}");
    undisturbed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_or_go_that_is_lost_is_sent_again_and_so_is_one_whose_answer_is_lost() {
    let cell = behind_proxies().await;
    let mut viewer = streaming(&cell).await;
    for verb in ["plan", "go"] {
        let of = move |message: &Message| message.verb() == verb && message.subject.contains(".tp.");
        let lost = suffer(&cell, &mut viewer, "leader", meddling::lose(1, of), 1).await;
        let unheard = suffer(&cell, &mut viewer, "leader", meddling::lose_answers(1, of), 1).await;
        for (what, trace) in [("lost", lost), ("answer lost", unheard)] {
            let what = format!("{verb}: {what}");
            assert!(!trace.told(), "{what}: nobody need hear of it: {trace:?}");
            assert_flows_on(&what, &trace, 0);
            assert_as_undisturbed(&what, &cell, &trace).await;
        }
    }
    viewer.end().await;
    cell.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_lost_is_asked_for_again_and_a_call_that_is_lost_is_made_again() {
    let cell = behind_proxies().await;
    let mut viewer = streaming(&cell).await;
    let result = suffer(&cell, &mut viewer, "stage0", meddling::lose_answers(1, is_infer), 1).await;
    assert!(!result.told(), "the leader had kept it: {result:?}");
    assert_flows_on("result", &result, 0);
    assert_as_undisturbed("result", &cell, &result).await;

    let call = suffer(&cell, &mut viewer, "stage0", meddling::lose(1, is_infer), 1).await;
    assert_flows_on("call", &call, 0);
    assert_as_undisturbed("call", &cell, &call).await;

    // With what is asked again lost as well, it ends like a call that failed: noticed long before its own time.
    let twice = suffer(&cell, &mut viewer, "stage0", meddling::lose_answers(2, is_infer), 2).await;
    assert_flows_on("result, twice", &twice, 1);
    wait::assert_within("result, twice", twice.noticed_after().unwrap(), Duration::from_secs(3));
    assert_as_undisturbed("result, twice", &cell, &twice).await;
    viewer.end().await;
    cell.stop().await;
}

/// How many calls a mesh has run since it was ready, once every rank has run at least `expected`: they tell twice a second.
async fn calls_run(cell: &Cell, expected: u64) -> u64 {
    let operator = Operator::connect(cell).await;
    let plans = || async {
        let status = operator.status().await;
        let calls = |role| process(&status, role)["mesh"]["last_plan"].as_u64()?.checked_sub(WARM_UP);
        let (leader, worker) = (calls("mesh_leader")?, calls("tp_worker")?);
        (leader.min(worker) >= expected).then_some(leader.max(worker))
    };
    wait::until(&format!("{expected} calls on every rank"), Duration::from_secs(20), plans).await
}

/// How many calls a paused session has made: the newest chunk that went to the output, and the one that waits behind it.
async fn calls_made(cell: &Cell) -> u64 {
    let paused = |status: &ProcessStatus| {
        let report = status.stage0.as_ref()?.reports.first().cloned()?;
        (report.state == SessionState::Paused).then_some(report.chunk_index)
    };
    paused(&cell.status(|status| paused(status).is_some()).await).unwrap() + 2
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_come_twice_are_obeyed_once() {
    let cell = behind_proxies().await;
    let caught: Vec<Caught> = SERVICES
        .into_iter()
        .map(|service| {
            // Whatever reaches a process reaches it twice: requests, answers, statuses.
            let (meddler, caught) = meddling::repeat(|message| !message.published);
            cell.proxy(service).meddle(meddler);
            caught
        })
        .collect();
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &fox()).await;
    let mut reports = BTreeMap::new();
    while reports.len() < 12 {
        let report = viewer.chunk().await;
        reports.insert(report.chunk_index, report.latents);
    }
    assert_eq!(reports.keys().map(|index| index.0).collect::<Vec<_>>(), (0..12).collect::<Vec<_>>());
    viewer.control(contract::session::Control::Pause { paused: true }).await.unwrap();
    let made = calls_made(&cell).await;
    assert_eq!(calls_run(&cell, made).await, made);
    for (service, caught) in SERVICES.iter().zip(caught) {
        assert!(!caught.messages().is_empty(), "{service}");
        cell.proxy(service).meddle(Meddler::default());
    }
    assert!(cell.ends().is_empty(), "{:?}", cell.ends());
    viewer.end().await;
    let mut undisturbed = Viewer::open(&bus, &cell.id(), &fox()).await;
    for report in undisturbed.chunks_until(11).await {
        assert_eq!(reports[&report.chunk_index], report.latents, "{}", report.chunk_index);
    }
    undisturbed.end().await;
    cell.stop().await;
}

/// A plain client with the rights of a service: it can say again what that service has said.
async fn impostor(cell: &Cell, user: &str) -> Client {
    let password = std::fs::read_to_string(cell.password_file(user)).unwrap();
    ConnectOptions::with_user_and_password(user.to_owned(), password.trim().to_owned())
        .connect(cell.nats_url())
        .await
        .unwrap()
}

/// Says again what was captured: same subject, headers, body, and place to answer to.
async fn say_again(client: &Client, messages: &[Message]) {
    for message in messages {
        let subject = message.subject.clone();
        let headers = headers_of(&message.headers);
        let body = message.body.clone().into();
        match message.reply.clone() {
            Some(reply) => {
                client.publish_with_reply_and_headers(subject, reply, headers, body).await.unwrap()
            }
            None => client.publish_with_headers(subject, headers, body).await.unwrap(),
        }
    }
    client.flush().await.unwrap();
}

fn headers_of(block: &[u8]) -> HeaderMap {
    let text = String::from_utf8_lossy(block).into_owned();
    let pairs = text.lines().skip(1).filter_map(|line| line.split_once(':'));
    let mut headers = HeaderMap::new();
    pairs.for_each(|(name, value)| headers.insert(name.trim(), value.trim()));
    headers
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_captured_and_sent_again_change_nothing() {
    let mut cell = behind_proxies().await;
    let to_the_mesh = |message: &Message| message.published && message.subject.ends_with(".mesh.call");
    let to_ranks = |message: &Message| message.published && message.subject.contains(".tp.");
    let (meddler, calls) = meddling::capture(to_the_mesh);
    cell.proxy("stage0").meddle(meddler);
    let (meddler, plans) = meddling::capture(to_ranks);
    cell.proxy("leader").meddle(meddler);
    let mut first = streaming(&cell).await;
    first.chunks_until(5).await;
    // The lease of a stage0 that has left, with its farewell, is among what is said again.
    cell.signal("stage0", Signal::Term);
    cell.exit("stage0", Duration::from_secs(10)).await;
    cell.start_process("stage0");
    let pid = cell.pid("stage0");
    cell.status(|status| status.role == Role::Stage0 && status.ready && Some(status.pid) == pid).await;
    let mut viewer = streaming(&cell).await;
    let (calls, plans) = (calls.messages(), plans.messages());
    for verb in ["plan", "go"] {
        assert!(plans.iter().any(|message| message.verb() == verb), "{verb}");
    }
    assert!(calls.iter().any(is_infer) && calls.iter().any(|call| call.mentions("bye")), "{}", calls.len());

    let (stage0, leader) = (impostor(&cell, "stage0").await, impostor(&cell, "leader").await);
    let before = (cell.pids(), epoch(&cell).await);
    let replay = async {
        let mut last = None;
        for _ in 0..3 {
            // Each time into another call.
            let of = |status: &ProcessStatus| status.stage0.as_ref().and_then(|stage0| stage0.last_call);
            last = of(&cell.status(|status| of(status) > last).await);
            say_again(&stage0, &calls).await;
            say_again(&leader, &plans).await;
        }
    };
    let trace = Box::pin(viewer.suffer(replay)).await;
    assert!(!trace.told(), "{trace:?}");
    assert_flows_on("replay", &trace, 0);
    assert_eq!(before, (cell.pids(), epoch(&cell).await), "nobody ended, and the mesh did not form again");
    let stage0 = cell.status(|status| status.role == Role::Stage0).await.stage0.unwrap();
    assert_eq!(stage0.sessions, 1, "the session of the stage0 that left is not this one's");
    assert_as_undisturbed("replay", &cell, &trace).await;
    viewer.end().await;
    cell.stop().await;
}

async fn epoch(cell: &Cell) -> Option<contract::MeshEpoch> {
    cell.status(|status| status.role == Role::MeshLeader).await.mesh.unwrap().epoch
}
