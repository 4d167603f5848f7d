//! Random schedules in simulated time: whatever the network does, every call ends by its deadline + 1 s, no rank enters a
//! collective without go, and the mesh comes back.

use crate::sim::{Cell, Network, ms};
use contract::envelope::MeshPhase;
use proptest::prelude::*;

const PERFECT: Network = Network { drop: 0, repeat: 0, max_delay_ms: 2 };

fn ready(cell: &Cell) -> bool {
    cell.leader.view(cell.now).phase == MeshPhase::Ready
}

#[test]
fn a_mesh_of_each_world_size_becomes_ready_and_serves() {
    for ranks in [1, 2, 4] {
        let mut cell = Cell::new(ranks, 1, 1, PERFECT);
        assert!(cell.run_until(ms(5_000), ready), "world size {ranks}");
        assert!(cell.run_until(ms(20_000), |cell| cell.delivered >= 10), "world size {ranks}");
        assert_eq!(cell.failed, []);
    }
}

#[test]
fn a_dead_worker_ends_the_call_and_its_replacement_brings_the_mesh_back() {
    let mut cell = Cell::new(2, 1, 3, PERFECT);
    assert!(
        cell.run_until(ms(20_000), |cell| cell.delivered >= 3 && cell.controllers[0].running().is_some())
    );
    cell.kill_worker(0);
    assert!(cell.run_until(ms(25_000), |cell| !cell.failed.is_empty()));
    assert_eq!(cell.failed[0].reason, contract::Reason::RankLost);
    cell.restart_worker(0);
    let before = cell.delivered;
    assert!(cell.run_until(ms(60_000), |cell| cell.delivered >= before + 3), "{:?}", cell.exits);
    assert!(cell.exits.is_empty());
}

#[test]
fn an_idle_mesh_stays_ready() {
    let mut cell = Cell::new(4, 0, 5, PERFECT);
    assert!(cell.run_until(ms(5_000), ready));
    cell.run_until(ms(60_000), |cell| !ready(cell));
    assert!(ready(&cell) && cell.exits.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_call_ends_and_the_mesh_serves_again(
        seed in 1_u64..u64::MAX,
        ranks in prop::sample::select(vec![1_u32, 2, 4]),
        drop in 0_u64..25,
        repeat in 0_u64..25,
        max_delay_ms in 1_u64..120,
        kill_at in 500_u64..8_000,
    ) {
        let mut cell = Cell::new(ranks, 2, seed, Network { drop, repeat, max_delay_ms });
        cell.run_until(ms(kill_at), |_| false);
        if ranks > 1 {
            cell.kill_worker(0);
            cell.run_until(ms(kill_at + 1_500), |_| false);
            cell.restart_worker(0);
        }
        cell.run_until(ms(20_000), |_| false);
        let before = cell.delivered;
        let served = cell.run_until(ms(120_000), |cell| cell.delivered > before || !cell.exits.is_empty());
        prop_assert!(served, "{:#?}\n{:#?}\n{:?}", cell.leader.view(cell.now), cell.controllers, cell.failed);
    }
}
