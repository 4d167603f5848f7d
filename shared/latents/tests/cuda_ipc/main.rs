//! The link in device memory against the contract of every link, with stage0's end in another process, as CUDA wants it.
#![allow(clippy::unwrap_used, reason = "a test helper that cannot go on panics")]

#[path = "../contract/mod.rs"]
mod contract_of_links;

use contract::Reason;
use contract::link::LinkKind;
use latents::cuda_ipc;
use tch::Device;

use crate::contract_of_links::remote::{self, Remote};
use crate::contract_of_links::{Ends, KEY, every_promise, picture, prefix, rings, same};

fn gpu() -> Device {
    device::resolve("cuda:0".parse().unwrap(), None).unwrap().device
}

fn ends(slots_in: u32, slots_out: u32, slot_bytes: u64, link_epoch: u64) -> Ends {
    let prefix = prefix("gpu");
    let rings = rings(&prefix, slots_in, slots_out, slot_bytes, link_epoch);
    let (leader, descriptor) = latents::create(LinkKind::CudaIpc, gpu(), &rings).unwrap();
    Ends { leader, stage0: Box::new(Remote::open("stage0", &descriptor, "0")) }
}

#[test]
fn stage0() {
    remote::serve(latents::open);
}

#[test]
fn it_keeps_every_promise_of_a_link() {
    every_promise(&ends);
}

#[test]
fn the_leader_reads_onto_its_gpu_and_writes_from_there() {
    let Ends { mut leader, mut stage0 } = ends(1, 1, 1 << 20, 1);
    let spec = stage0.write(KEY, &picture(7, 1000)).unwrap();
    let read = leader.read(&spec).unwrap();
    assert_eq!(read.device(), gpu());
    let result = leader.write(KEY, &(read * 2)).unwrap();
    assert!(same(&stage0.read(&result).unwrap(), &picture(14, 1000)));
}

/// Bytes of the GPU that nobody uses.
fn free() -> i64 {
    let _current = device::Context::of(0).unwrap();
    i64::try_from(cudarc::driver::result::mem_get_info().unwrap().0).unwrap()
}

#[test]
fn the_memory_of_closed_links_comes_back_once_nobody_has_it_open() {
    const SLOT: u64 = 256 << 20;
    let _ = gpu();
    let before = free();
    for epoch in 1..=4 {
        let prefix = prefix("returns");
        let rings = rings(&prefix, 1, 1, SLOT, epoch);
        let (leader, descriptor) = cuda_ipc::create(0, &rings).unwrap();
        let stage0 = Remote::open("stage0", &descriptor, "0");
        drop(leader);
        if epoch == 1 {
            assert!(before - free() > 256 << 20, "it is kept while stage0 has it");
        }
        // Its process is killed.
        drop(stage0);
    }
    // What the last one kept is freed with the next link that is made or closed.
    let prefix = prefix("last");
    drop(cuda_ipc::create(0, &rings(&prefix, 1, 1, 64, 5)).unwrap());
    assert!(before - free() < 128 << 20, "{before} bytes free before, {} after", free());
}

#[test]
fn a_link_whose_leader_is_gone_is_refused() {
    let _ = gpu();
    let prefix = prefix("gone");
    let (leader, descriptor) = cuda_ipc::create(0, &rings(&prefix, 1, 1, 64, 1)).unwrap();
    drop(leader);
    assert_eq!(cuda_ipc::open(0, &descriptor).unwrap_err().reason, Reason::NotReady);
}
