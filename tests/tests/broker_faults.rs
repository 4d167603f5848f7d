//! The broker dies, freezes, or is away for one service: nobody else ends of it, and the picture goes on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::time::Duration;

use contract::status::Role;
use serde_json::json;
use system_tests::cell::BROKER;
use system_tests::{Cell, Fault, Trace, Viewer};

const SERVICES: [&str; 4] = ["gateway", "stage0", "leader", "worker1"];

async fn streaming(cell: &Cell) -> Viewer {
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &json!({"prompts": [{"text": "a red fox"}]})).await;
    viewer.chunks_until(2).await;
    viewer
}

/// The fault costs time and nothing else: no service ends, the session is the same and streams.
async fn strike(cell: &Cell, viewer: &mut Viewer, fault: Fault, process: &str) -> Trace {
    let before = cell.pids();
    let trace = viewer.suffer(fault.strike(cell, process)).await;
    let what = format!("{process}: {fault}");
    assert!(!trace.ended, "{what}: the session ended: {:?}", trace.errors);
    for service in SERVICES {
        assert_eq!(
            cell.pid(service),
            before.get(service).copied(),
            "{what}: {service} ended: {:?}",
            cell.ends()
        );
    }
    let stage0 = cell.status(|status| status.role == Role::Stage0 && status.ready).await.stage0.unwrap();
    assert_eq!(stage0.sessions, 1, "{what}");
    trace
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_dies_or_freezes_ends_nobody_and_the_picture_goes_on() {
    let cell = Cell::builder().supervised().ready().await;
    let mut viewer = streaming(&cell).await;
    for fault in [Fault::Kill, Fault::Pause(Duration::from_secs(5))] {
        strike(&cell, &mut viewer, fault, BROKER).await;
    }
    // Everything has registered again: the cell is ready and discoverable, also for who comes now.
    cell.wait_ready(Duration::from_secs(20)).await;
    let mut second = streaming(&cell).await;
    second.chunk().await;
    second.end().await;
    viewer.end().await;
    cell.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_loses_the_broker_comes_back_and_the_picture_goes_on() {
    let cell = SERVICES.iter().fold(Cell::builder(), |cell, service| cell.behind_proxy(service));
    let cell = cell.supervised().ready().await;
    let mut viewer = streaming(&cell).await;
    for service in SERVICES {
        strike(&cell, &mut viewer, Fault::Cut, service).await;
    }
    for service in ["stage0", "leader", "worker1"] {
        strike(&cell, &mut viewer, Fault::Freeze(Duration::from_secs(2)), service).await;
    }
    strike(&cell, &mut viewer, Fault::Isolate(Duration::from_secs(3)), "worker1").await;
    viewer.end().await;
    cell.stop().await;
}
