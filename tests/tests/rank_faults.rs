//! Ranks die, stop, leave and slow down while a viewer watches: the session goes on, and whoever survived stays.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use contract::event::SessionState;
use contract::status::Role;
use serde_json::{Value, json};
use system_tests::{Cell, Fault, Trace, Viewer, leftovers, wait};

const PAUSE: Fault = Fault::Pause(Duration::from_secs(3));
const SLOW: Fault = Fault::Slow(Duration::from_secs(3));

fn fox() -> Value {
    json!({"prompts": [{"text": "a red fox"}]})
}

async fn streaming(cell: &Cell) -> Viewer {
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &fox()).await;
    viewer.chunks_until(2).await;
    viewer
}

/// What a fault may cost.
#[derive(Clone, Copy)]
struct Allowed {
    noticed: Duration,
    lost: u64,
}

fn assert_recovered(what: &str, trace: &Trace, allowed: &Allowed) {
    assert!(!trace.ended, "{what}: the session ended: {:?}", trace.errors);
    assert!(trace.states.contains(&SessionState::Recovering), "{what}: {:?}", trace.states);
    assert_eq!(trace.states.last(), Some(&SessionState::Streaming), "{what}: {:?}", trace.states);
    wait::assert_within(&format!("{what}: the first word"), trace.noticed_after().unwrap(), allowed.noticed);
    assert!(trace.chunks_lost() <= allowed.lost, "{what}: {} chunks lost: {trace:?}", trace.chunks_lost());
}

/// All processes but `dead` are those that they were: they kept their weights.
async fn assert_survivors(what: &str, cell: &Cell, before: &BTreeMap<String, u32>, dead: &[&str]) {
    let after = cell.pids();
    for (name, pid) in before {
        if dead.contains(&name.as_str()) {
            assert_ne!(after.get(name), Some(pid), "{what}: {name} was to die");
            assert!(after.contains_key(name), "{what}: {name} was not started again");
        } else {
            assert_eq!(after.get(name), Some(pid), "{what}: {name} did not survive: {:?}", cell.ends());
        }
    }
    assert_eq!(cell.orphans(), BTreeSet::new(), "{what}");
    wait::until(&format!("{what}: no shared memory left behind"), Duration::from_secs(5), || async {
        leftovers::unmapped_memory().is_empty().then_some(())
    })
    .await;
    let stage0 = cell.status(|status| status.role == Role::Stage0).await.stage0.unwrap();
    assert_eq!(stage0.sessions, 1, "{what}");
}

async fn strike(cell: &Cell, viewer: &mut Viewer, fault: Fault, process: &str) -> Trace {
    let before = cell.pids();
    let trace = viewer.suffer(fault.strike(cell, process)).await;
    let dead: &[&str] = if fault.ends_the_process() { &[process] } else { &[] };
    assert_survivors(&format!("{process}: {fault}"), cell, &before, dead).await;
    trace
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_or_stops_costs_its_chunk_and_one_that_leaves_nothing() {
    let cell = Cell::builder().supervised().ready().await;
    let mut viewer = streaming(&cell).await;
    let noticed = Duration::from_secs(1);
    let killed = strike(&cell, &mut viewer, Fault::Kill, "worker1").await;
    assert_recovered("killed", &killed, &Allowed { noticed, lost: 1 });
    let paused = strike(&cell, &mut viewer, PAUSE, "worker1").await;
    assert_recovered("paused", &paused, &Allowed { noticed, lost: 1 });
    let left = strike(&cell, &mut viewer, Fault::Terminate, "worker1").await;
    assert_recovered("left", &left, &Allowed { noticed: Duration::from_secs(5), lost: 0 });
    let slow = strike(&cell, &mut viewer, SLOW, "worker1").await;
    assert!(!slow.told(), "a slow worker is no fault: {slow:?}");
    viewer.end().await;

    // What was made again after the death is what would have been made without it, to the last bit.
    let made: BTreeMap<_, _> =
        killed.chunks.iter().map(|(_, c)| (c.chunk_index, c.latents.clone())).collect();
    let bus = cell.bus("gateway").await;
    let mut undisturbed = Viewer::open(&bus, &cell.id(), &fox()).await;
    let last = *made.keys().last().unwrap();
    let chunks = undisturbed.chunks_until(last.0).await;
    let plain = chunks.into_iter().map(|chunk| (chunk.chunk_index, chunk.latents));
    let plain: BTreeMap<_, _> = plain.filter(|(index, _)| made.contains_key(index)).collect();
    assert_eq!(made, plain);
    undisturbed.end().await;
    cell.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_stops_or_leaves_costs_its_chunk_and_the_workers_keep_their_weights() {
    let cell = Cell::builder().supervised().ready().await;
    let mut viewer = streaming(&cell).await;
    let allowed = Allowed { noticed: Duration::from_secs(2), lost: 1 };
    for fault in [Fault::Kill, PAUSE, Fault::Terminate] {
        let trace = strike(&cell, &mut viewer, fault, "leader").await;
        assert_recovered(&fault.to_string(), &trace, &allowed);
    }
    let trace = strike(&cell, &mut viewer, SLOW, "leader").await;
    assert!(!trace.told(), "a slow leader is no fault: {trace:?}");

    let before = cell.pids();
    let both = async {
        Fault::Kill.strike(&cell, "worker1").await;
        Fault::Kill.strike(&cell, "leader").await;
    };
    let trace = viewer.suffer(both).await;
    assert_recovered("both", &trace, &allowed);
    assert_survivors("both", &cell, &before, &["leader", "worker1"]).await;
    viewer.end().await;
    cell.stop().await;
}
