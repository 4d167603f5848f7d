use std::thread;

use collectives::Collective;
use collectives::loopback::{Loopback, Rendezvous};
use tch::Device;

use crate::contract::soon;

/// A group of `world` ranks in this process.
pub(crate) fn group(world: u32) -> Vec<Loopback> {
    let rendezvous = Rendezvous::create(world).unwrap();
    let bytes = rendezvous.to_bytes();
    thread::scope(|scope| {
        let join = |rank| {
            let bytes = &bytes;
            scope.spawn(move || {
                let rendezvous = Rendezvous::from_bytes(bytes).unwrap();
                Loopback::connect(&rendezvous, rank, world, soon()).unwrap()
            })
        };
        let ranks: Vec<_> = (0..world).map(join).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Each rank runs `scenario` on a thread of its own; the group lives until all are done.
pub(crate) fn threads(world: u32, scenario: impl Fn(&dyn Collective, Device) + Sync) {
    let group = group(world);
    thread::scope(|scope| {
        for c in &group {
            let scenario = &scenario;
            scope.spawn(move || scenario(c, Device::Cpu));
        }
    });
}
