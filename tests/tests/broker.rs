//! The broker's side: a stranger with a NATS client finds the services, reads the cell's state, and may do no more than
//! its account allows.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bus::presence::{self, Presence};
use contract::status::Role;
use contract::{Budget, Deadline};
use system_tests::{Cell, Signal, python, wait};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_discovers_asks_and_is_refused_as_the_account_says() {
    let cell = Cell::builder().ready().await;
    let status = cell.http().get("/ready").await;
    assert_eq!(status.status, 200);
    let credentials = cell.password_file("ops");
    let credentials = credentials.parent().unwrap().to_str().unwrap();
    let args = ["--url", cell.nats_url(), "--credentials", credentials, "--epoch", "1"];
    let seen = python::run("nats_stranger.py", &args, Duration::from_secs(60)).await;

    let services = seen["services"].as_array().unwrap();
    let names: BTreeSet<_> = services.iter().map(|info| info["name"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["gateway", "stage0", "mesh-leader", "tp-worker"]));
    assert!(services.iter().all(|info| info["type"] == "io.nats.micro.v1.info_response"), "{services:?}");

    assert_eq!(seen["status"]["cell"], "cell0");
    assert_eq!(seen["status"]["ready"], true);
    assert_eq!(seen["status"]["processes"].as_array().unwrap().len(), 4, "{}", seen["status"]);

    // Without a user one may look, and touch nothing.
    assert_eq!(seen["guest_status"]["cell"], "cell0");
    assert_ne!(seen["guest_shutdown"], "answered");
    let refused = seen["guest_errors"].to_string().to_lowercase();
    assert!(refused.contains("permissions violation"), "{refused}");

    assert_eq!(seen["bad_headers"]["Nats-Service-Error-Code"], "400", "{}", seen["bad_headers"]);
    assert!(seen["bad_body"].as_str().unwrap().contains('7'), "{}", seen["bad_body"]);

    assert_ne!(seen["mesh_call_as_gateway"], "answered");
    let errors = seen["gateway_errors"].to_string().to_lowercase();
    assert!(errors.contains("permissions violation"), "{errors}");
}

/// With the accounts of the product: the gateway may ask, leader and stage0 may hear.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_killed_is_not_there_any_more_for_the_gateway() {
    let cell = Cell::builder().ready().await;
    let (gateway, id) = (cell.bus("gateway").await, cell.id());
    for (process, role) in [("stage0", Role::Stage0), ("leader", Role::MeshLeader)] {
        let instance = cell.status(|status| status.role == role).await.instance;
        let ask = || {
            let deadline = Deadline::after(Instant::now(), Budget::from_secs(5));
            presence::ask(&gateway, &id, instance, deadline)
        };
        assert_eq!(ask().await, Presence::Here, "{process}");
        cell.signal(process, Signal::Kill);
        wait::until(process, MINUTE, || async { (ask().await == Presence::Gone).then_some(()) }).await;
    }
}
