//! The link over NCCL against the contract of every link, with stage0's end in another process, on the same GPU: slow, which NCCL allows
//! only where each of the two believes itself on a host of its own. So this needs `NCCL_HOSTID=leader` (stage0 has another one) and
//! `NCCL_SOCKET_IFNAME=lo`, as `tests/gpu/run` sets them.
#![allow(clippy::unwrap_used, reason = "a test helper that cannot go on panics")]

#[path = "../contract/mod.rs"]
mod contract_of_links;

use std::thread;
use std::time::{Duration, Instant};

use contract::link::{LinkDescriptor, LinkKind};
use contract::tensor::TensorKey;
use contract::{Error, Reason};
use latents::far::{OPENING, TRANSFER};
use latents::{Condition, LatentLink, nccl};
use tch::{Device, Kind, Tensor};

use crate::contract_of_links::remote::{self, Remote, settled};
use crate::contract_of_links::{Ends, KEY, every_promise, picture, prefix, rings, same};

const SLACK: Duration = Duration::from_secs(2);

fn gpu() -> Device {
    device::resolve("cuda:0".parse().unwrap(), None).unwrap().device
}

fn leader(slots: u32, slot_bytes: u64, epoch: u64) -> (Box<dyn LatentLink>, LinkDescriptor) {
    let prefix = prefix("nccl");
    latents::create(LinkKind::Nccl, gpu(), &rings(&prefix, slots, slots, slot_bytes, epoch)).unwrap()
}

fn ends(slots_in: u32, slots_out: u32, slot_bytes: u64, link_epoch: u64) -> Ends {
    let prefix = prefix("nccl");
    let rings = rings(&prefix, slots_in, slots_out, slot_bytes, link_epoch);
    let (leader, descriptor) = latents::create(LinkKind::Nccl, gpu(), &rings).unwrap();
    let stage0 = Remote::open("stage0", &descriptor, "0");
    assert_eq!((settled(&*leader), stage0.condition()), (Condition::Open, Condition::Open));
    Ends { leader, stage0: Box::new(stage0) }
}

/// How it ended.
fn failed(link: &dyn LatentLink) -> Error {
    let until = Instant::now() + TRANSFER + SLACK;
    loop {
        match link.condition() {
            Condition::Failed(error) => return error,
            _ if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
            other => panic!("{other:?}: a failed link is expected"),
        }
    }
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
    for write in 1..=50 {
        let spec = stage0.write(KEY, &picture(write, 1000)).unwrap();
        let read = leader.read(&spec).unwrap();
        assert_eq!(read.device(), gpu());
        leader.release(spec.slot, spec.generation).unwrap();
        let result = leader.write(TensorKey::LatentsOut, &(read * 2)).unwrap();
        assert!(same(&stage0.read(&result).unwrap(), &picture(2 * write, 1000)));
        stage0.release(result.slot, result.generation).unwrap();
    }
}

/// What torch has been given is done before a slot is written, and a transfer does not wait for what it is given later.
#[test]
fn a_transfer_does_not_wait_for_what_torch_computes() {
    let Ends { mut leader, mut stage0 } = ends(1, 1, 1 << 20, 1);
    let spec = stage0.write(KEY, &picture(1, 1000)).unwrap();
    let _ = leader.read(&spec).unwrap();
    let result = leader.write(TensorKey::LatentsOut, &picture(2, 1000).to_device(gpu())).unwrap();
    let a = Tensor::randn([8192, 8192], (Kind::Float, gpu()));
    let mut busy = a.shallow_clone();
    for _ in 0..50 {
        busy = busy.matmul(&a).tanh();
    }
    let started = Instant::now();
    assert!(same(&stage0.read(&result).unwrap(), &picture(2, 1000)));
    let read = started.elapsed();
    tch::Cuda::synchronize(0);
    println!(
        "the other end's read ended {} ms after it began, this one's work {} ms",
        read.as_millis(),
        started.elapsed().as_millis()
    );
}

#[test]
fn a_stage0_that_is_killed_or_stands_still_ends_a_read_in_time_and_another_takes_its_place() {
    for (epoch, stop) in [(1, false), (2, true)] {
        let (mut leader, descriptor) = leader(2, 1 << 20, epoch);
        let mut stage0 = Remote::open("stage0", &descriptor, "0");
        assert_eq!(settled(&*leader), Condition::Open);
        let spec = stage0.write(KEY, &picture(1, 1000)).unwrap();
        let held = stop.then(|| {
            stage0.stand_still();
            stage0
        });
        let started = Instant::now();
        let error = leader.read(&spec).unwrap_err();
        println!(
            "a read ended {} ms after stage0 was gone: {error} {:?}",
            started.elapsed().as_millis(),
            error.detail
        );
        assert_eq!(error.reason, Reason::CallAborted);
        assert!(started.elapsed() < TRANSFER + SLACK);
        let started = Instant::now();
        drop(leader);
        assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
        let again = ends(1, 1, 64, epoch + 10);
        assert_eq!(again.leader.free_slots(), 1);
        drop(held);
    }
}

#[test]
fn a_leader_that_closes_the_link_ends_the_one_of_stage0() {
    let Ends { leader, stage0 } = ends(1, 1, 64, 1);
    drop(leader);
    assert_eq!(failed(&*stage0).reason, Reason::CallAborted);
}

/// Bytes of the GPU that nobody uses.
fn free() -> i64 {
    let _current = device::Context::of(0).unwrap();
    i64::try_from(cudarc::driver::result::mem_get_info().unwrap().0).unwrap()
}

#[test]
fn links_that_open_and_close_again_and_again_leave_no_device_memory() {
    const SLOT: u64 = 64 << 20;
    let mut left = Vec::new();
    for epoch in 1..=6 {
        let (leader, descriptor) = leader(1, SLOT, epoch);
        let stage0 = Remote::open("stage0", &descriptor, "0");
        assert_eq!(settled(&*leader), Condition::Open);
        drop(leader);
        drop(stage0);
        // A thread waits for the abort.
        thread::sleep(Duration::from_secs(3));
        left.push(free());
    }
    // The first rounds fill caches of the driver.
    let lost = (left[1] - left[5]) / (1 << 20);
    println!("4 links of {} MiB opened and closed: {lost} MiB less free memory", (2 * SLOT) >> 20);
    assert!(lost < 32, "{left:?}");
}

#[test]
fn a_link_whose_leader_is_gone_fails_in_time() {
    let (gone, descriptor) = leader(1, 64, 1);
    drop(gone);
    let started = Instant::now();
    let late = nccl::open(0, &descriptor).unwrap();
    assert!(matches!(settled(&late), Condition::Failed(_)));
    assert!(started.elapsed() < OPENING + SLACK);
}
