//! What is checked in CI; `KINEMESH_FAULTS=3` and the like make it larger, or smaller.

use std::time::Instant;

use super::{Bounds, check, setup};

fn bound(name: &str, default: u8) -> u8 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn explore(what: &str, ranks: u32, controllers: usize, default: Bounds) {
    let bounds = Bounds {
        faults: bound("KINEMESH_FAULTS", default.faults),
        epochs: bound("KINEMESH_EPOCHS", default.epochs),
        duplicates: bound("KINEMESH_DUPLICATES", default.duplicates),
        calls: bound("KINEMESH_CALLS", default.calls),
    };
    let began = Instant::now();
    let found = check(setup(ranks, controllers), bounds);
    println!(
        "{what}: {} states ({} ready, {} beyond the bound), {} transitions, depth {}, {:.1} s, {bounds:?}",
        found.states,
        found.ready,
        found.beyond,
        found.transitions,
        found.depth,
        began.elapsed().as_secs_f64()
    );
    if let Some((broken, way)) = found.broken {
        panic!("{what}: {broken:?}\n{}", way.join("\n"));
    }
    assert!(found.serves, "{what}: no call was ever served");
    assert_eq!(found.stranded, 0, "{what}: no way to a ready mesh from\n{}", found.way.join("\n"));
}

#[test]
fn one_worker_two_faults_two_calls_and_a_duplicate() {
    explore("one worker", 2, 1, Bounds { faults: 2, epochs: 2, duplicates: 1, calls: 2 });
}

#[test]
fn two_controllers() {
    explore("two controllers", 1, 2, Bounds { faults: 1, epochs: 2, duplicates: 0, calls: 1 });
}

#[test]
fn two_workers() {
    explore("two workers", 3, 1, Bounds { faults: 1, epochs: 2, duplicates: 0, calls: 1 });
}
