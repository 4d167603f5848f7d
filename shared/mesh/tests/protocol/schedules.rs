//! Random schedules in simulated time: whatever fails, every call ends by its deadline + 1 s, every other invariant
//! holds, and the mesh serves again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use contract::Reason;
use mesh::ExitCode;

use crate::cell::Node;
use crate::fixtures::ms;
use crate::sim::{Dice, Fault, Network, PERFECT, Sim};

#[test]
fn a_mesh_of_each_world_size_becomes_ready_and_serves() {
    for ranks in [1, 2, 4] {
        let mut sim = Sim::new(ranks, 1, 1, PERFECT);
        assert!(sim.run_until(ms(5_000), Sim::ready), "world size {ranks}");
        assert!(sim.run_until(ms(20_000), |sim| sim.cell.log.delivered >= 10), "world size {ranks}");
        assert_eq!(sim.cell.log.failed, []);
    }
}

#[test]
fn a_dead_worker_ends_the_call_and_its_replacement_brings_the_mesh_back() {
    let mut sim = Sim::new(2, 1, 3, PERFECT);
    let calls = |sim: &Sim| sim.cell.controllers[0].machine.as_ref().is_some_and(|m| m.running().is_some());
    assert!(sim.run_until(ms(20_000), |sim| sim.cell.log.delivered >= 3 && calls(sim)));
    sim.strike(Fault::Kill(Node::Worker(0)));
    assert!(sim.run_until(ms(25_000), |sim| !sim.cell.log.failed.is_empty()));
    assert_eq!(sim.cell.log.failed[0].reason, Reason::RankLost);
    let before = sim.cell.log.delivered;
    assert!(sim.run_until(ms(60_000), |sim| sim.cell.log.delivered >= before + 3), "{:?}", sim.cell.log);
    assert!(sim.cell.log.exits.is_empty());
}

#[test]
fn the_successor_of_a_dead_stage0_does_not_wait_for_the_end_of_its_lease() {
    let mut sim = Sim::new(2, 1, 3, PERFECT);
    assert!(sim.run_until(ms(20_000), |sim| sim.cell.log.delivered >= 3));
    sim.strike(Fault::Kill(Node::Controller(0)));
    let alive = |sim: &Sim| sim.cell.is_alive(Node::Controller(0));
    assert!(!alive(&sim) && sim.run_until(ms(25_000), alive));
    let (started, before) = (sim.cell.now, sim.cell.log.delivered);
    assert!(sim.run_until(ms(60_000), |sim| sim.cell.log.delivered > before), "{:?}", sim.cell.log);
    // At least 1.5 s of it are left.
    assert!(sim.cell.now - started < ms(1_300), "{:?}", sim.cell.now - started);
}

#[test]
fn a_worker_that_is_asked_to_stop_costs_no_call() {
    let mut sim = Sim::new(4, 1, 9, PERFECT);
    assert!(sim.run_until(ms(20_000), |sim| sim.cell.log.delivered >= 3));
    sim.strike(Fault::Drain(Node::Worker(1)));
    let ended = |sim: &Sim| !sim.cell.log.exits.is_empty();
    assert!(sim.run_until(ms(25_000), ended));
    let before = sim.cell.log.delivered;
    assert!(sim.run_until(ms(60_000), |sim| sim.cell.log.delivered >= before + 3), "{:?}", sim.cell.log);
    assert_eq!(sim.cell.log.failed, []);
    assert!(matches!(sim.cell.log.exits[..], [(Node::Worker(1), ExitCode::Asked, _)]));
}

#[test]
fn an_idle_mesh_stays_ready() {
    let mut sim = Sim::new(4, 0, 5, PERFECT);
    assert!(sim.run_until(ms(5_000), Sim::ready));
    sim.run_until(ms(60_000), |sim| !sim.ready());
    assert!(sim.ready() && sim.cell.log.exits.is_empty());
}

const SCHEDULES: u64 = 10_000;
/// Faults strike until then.
const TROUBLE_MS: u64 = 8_000;

#[test]
fn ten_thousand_random_schedules_of_faults() {
    // A fault that is expected to panic is reported once, with its seed, below.
    if let Ok(seed) = std::env::var("KINEMESH_SEED") {
        return schedule(seed.parse().expect("KINEMESH_SEED is a number"));
    }
    let next = AtomicU64::new(1);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > SCHEDULES {
                        return;
                    }
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| schedule(seed))) {
                        next.store(SCHEDULES, Ordering::Relaxed);
                        eprintln!("replay with KINEMESH_SEED={seed}");
                        std::panic::resume_unwind(panic);
                    }
                }
            });
        }
    });
}

pub(crate) fn schedule(seed: u64) {
    let mut dice = Dice::new(seed.wrapping_mul(31));
    let ranks = dice.pick(&[1, 2, 2, 4]);
    let controllers = dice.pick(&[1, 1, 2]);
    let drop = dice.pick(&[0, 0, 5, 25]);
    let repeat = dice.pick(&[0, 5, 25]);
    let network = Network { drop, repeat, max_delay_ms: 1 + dice.roll(120) };
    let mut sim = Sim::new(ranks, controllers, seed, network);
    let nodes = sim.cell.nodes();
    for _ in 0..1 + dice.roll(4) {
        let at = ms(500 + dice.roll(TROUBLE_MS - 500));
        let fault = any_fault(&mut dice, &nodes);
        sim.plan(at, fault);
    }
    sim.run_until(ms(TROUBLE_MS), |_| false);
    sim.network = PERFECT;
    // The longest fault is over, and nobody waits for what it took.
    sim.run_until(ms(TROUBLE_MS + 4_000), |_| false);
    let before = sim.cell.log.delivered;
    let served = sim.run_until(ms(TROUBLE_MS + 60_000), |sim| sim.cell.log.delivered > before);
    assert!(served, "the mesh does not serve again: {:?} {:?}", sim.phase(), sim.cell.log);
    let configuration =
        |(_, code, _): &(Node, ExitCode, String)| matches!(code, ExitCode::Configuration | ExitCode::Failed);
    assert!(!sim.cell.log.exits.iter().any(configuration), "{:?}", sim.cell.log.exits);
}

fn any_fault(dice: &mut Dice, nodes: &[Node]) -> Fault {
    let node = dice.pick(nodes);
    let time = |dice: &mut Dice| Duration::from_millis(100 + dice.roll(4_000));
    match dice.roll(11) {
        0..=2 => Fault::Kill(node),
        3..=4 => Fault::Freeze(node, time(dice)),
        5 => Fault::Slow(node, 1 + dice.roll(20)),
        6 => Fault::Drain(node),
        7 => Fault::Outage(time(dice)),
        8 => Fault::Replay(1 + dice.roll(20) as usize),
        9 => dice.pick(&[Fault::Lie, Fault::LoseKey]),
        _ => Fault::SlowLink(time(dice)),
    }
}
