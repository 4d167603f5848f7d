//! What does not fit its device is refused before anything is loaded, by name, and disturbs nobody.
//!
//! How much the machine has does not matter: the limit is set.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::path::PathBuf;
use std::time::Duration;

use system_tests::Cell;
use system_tests::cell::layout;
use xtask::outcome::Refused;
use xtask::stack::{Spec, Stack};
use xtask::up::needed_memory;

const LIMIT: &str = "KINEMESH_DEVICE__MEMORY_LIMIT_MIB";
/// Less than a process of libtorch takes.
const TOO_LITTLE: &str = "64";
const PATIENCE: Duration = Duration::from_secs(60);

fn assert_names(text: &str, names: &[&str]) {
    for name in names {
        assert!(text.contains(name), "{name} should be named: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_and_stage0_end_with_2_and_the_cell_comes_up_once_they_fit() {
    let builder = Cell::builder().env("leader", LIMIT, TOO_LITTLE).env("stage0", LIMIT, TOO_LITTLE);
    let mut cell = builder.start().await;
    let others = ["gateway", "worker1"].map(|name| cell.pid(name).unwrap());
    for (name, parts) in
        [("leader", ["a rank of 2", "kv caches"]), ("stage0", ["text encoder", "vae streams"])]
    {
        assert_eq!(cell.exit(name, PATIENCE).await.code(), Some(2), "{name}: {}", cell.printed(name));
        let printed = cell.printed(name);
        assert_names(&printed, &["not enough memory", "needs", "cpu has 0.06 GiB free of 0.06 GiB"]);
        assert_names(&printed, &parts);
    }
    for name in ["leader", "stage0"] {
        cell.start_as(name, None, &[(LIMIT, "")]);
    }
    cell.wait_ready(PATIENCE).await;
    assert_eq!(["gateway", "worker1"].map(|name| cell.pid(name).unwrap()), others, "they only waited");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_ends_with_2_when_it_hears_how_large_its_shard_is() {
    let cell = Cell::builder().env("worker1", LIMIT, TOO_LITTLE).start().await;
    assert_eq!(cell.exit("worker1", PATIENCE).await.code(), Some(2), "{}", cell.printed("worker1"));
    assert_names(&cell.printed("worker1"), &["rank 1", "not enough memory", "a rank of 2 needs", "weights"]);
    assert_eq!(cell.exit("leader", PATIENCE).await.code(), Some(1), "{}", cell.printed("leader"));
    assert_names(&cell.printed("leader"), &["rank 1 could not load its weights"]);
}

/// What `cargo xtask up` asks before it starts anything.
fn reckoner(model: &str, limit_mib: &str) -> Spec {
    let stack = Stack {
        gateway_port: 1,
        nats_port: 1,
        inner_ports: vec![1; Stack::inner_port_count(2)],
        world_size: 2,
        model: model.to_owned(),
        cores: 2,
        run_dir: PathBuf::new(),
    };
    let mut spec = stack.reckoner(&layout()).unwrap();
    spec.env.push((LIMIT.to_owned(), limit_mib.into()));
    spec
}

#[test]
fn up_is_told_what_all_services_need_together() {
    let said = needed_memory(&reckoner("tiny", "")).unwrap();
    assert_names(&said, &["a rank of 2 needs", "another rank beside it", "stage0 beside it", "together"]);
    // Two ranks and stage0, of which each takes its 256 MiB before it holds anything.
    assert_names(&needed_memory(&reckoner("tiny", "4096")).unwrap(), &["of 4.00 GiB"]);
}

#[test]
fn up_refuses_what_fits_only_service_by_service() {
    let refused = needed_memory(&reckoner("tiny", "600")).unwrap_err();
    assert!(refused.is::<Refused>(), "{refused:#}");
    assert_names(&refused.to_string(), &["not enough memory", "together", "cpu has 0.59 GiB free"]);
    let refused = needed_memory(&reckoner("wan-14b", "8192")).unwrap_err();
    assert_names(&refused.to_string(), &["weights 27.05", "no other setting of this model fits"]);
}
