//! A rank's side: this test binary again, doing what the lines on its input say.

use std::env;
use std::sync::Arc;
use std::time::{Duration, Instant};

use collectives::{Collective, CollectiveError, ReduceOp, Rendezvous};
use cudarc::driver::result::mem_get_info;
use device::DeviceKind;
use tch::{Device, Kind, Tensor};

use crate::contract::{FAULTS, HEALTHY, assert_ended, soon};

pub(crate) const RANK: &str = "NCCL_TEST_RANK";
pub(crate) const WORLD: &str = "NCCL_TEST_WORLD";

#[test]
fn process() {
    let Ok(rank) = env::var(RANK) else { return };
    let (rank, world) = (rank.parse().unwrap(), env::var(WORLD).unwrap().parse().unwrap());
    let device = device::resolve(DeviceKind::Cuda(0), None).unwrap().device;
    let mut group: Option<Arc<dyn Collective>> = None;
    let mut made: Option<Rendezvous> = None;
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match line.split_once(' ') {
            Some(("meet", bytes)) => {
                // The old group goes first, as in an engine.
                drop(group.take());
                let bytes = hex::decode(bytes).unwrap();
                let rendezvous = Rendezvous::from_bytes(&bytes).unwrap();
                let started = Instant::now();
                group = Some(rendezvous.connect(device, rank, world, soon()).unwrap());
                println!("met in {} ms", started.elapsed().as_millis());
            }
            _ if line == "make" => {
                let rendezvous = Rendezvous::create(device, world).unwrap();
                println!("rendezvous {}", hex::encode(rendezvous.to_bytes()));
                made = Some(rendezvous);
            }
            _ if line == "free_memory" => println!("free {}", mem_get_info().unwrap().0),
            _ if line == "a_meeting_that_nobody_comes_to" => {
                nobody_comes(device, rank, world);
                println!("done {line}");
            }
            _ => {
                scenario(&line, &**group.as_ref().unwrap(), device);
                println!("done {line}");
            }
        }
    }
    drop((group, made));
}

fn scenario(name: &str, c: &dyn Collective, device: Device) {
    let known = [HEALTHY, FAULTS].concat().into_iter().find(|(known, _)| *known == name);
    match (known, name) {
        (Some((_, scenario)), _) => scenario(c, device),
        (None, "the_device_is_free") => the_device_is_free(c, device),
        (None, "a_call_whose_peer_is_killed") => a_call_whose_peer_is_killed(c, device),
        (None, other) => panic!("no scenario {other}"),
    }
}

/// After an abort nothing of the group keeps the stream: tensors work on.
fn the_device_is_free(c: &dyn Collective, device: Device) {
    c.abort("the test is over");
    assert!(c.freed(Instant::now() + Duration::from_secs(2)), "the group was not freed");
    let started = Instant::now();
    assert_eq!(i64::try_from(Tensor::ones([1000], (Kind::Int64, device)).sum(Kind::Int64)).unwrap(), 1000);
    assert!(started.elapsed() < Duration::from_secs(1));
}

fn a_call_whose_peer_is_killed(c: &dyn Collective, device: Device) {
    println!("calling");
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut x = Tensor::zeros([100_000], (Kind::Float, device));
    let result = c.all_reduce(&mut x, ReduceOp::Sum, deadline);
    println!("the call ended with {result:?}");
    assert!(matches!(
        result,
        Err(CollectiveError::Aborted { .. } | CollectiveError::Timeout { .. } | CollectiveError::Io(_))
    ));
    assert!(Instant::now() < deadline + Duration::from_secs(1));
    assert_ended(c, device);
    the_device_is_free(c, device);
}

fn nobody_comes(device: Device, rank: u32, world: u32) {
    let rendezvous = Rendezvous::create(device, world).unwrap();
    let deadline = Instant::now() + Duration::from_secs(1);
    let error = rendezvous.connect(device, rank, world, deadline).map(|_| ()).unwrap_err();
    assert!(matches!(error, CollectiveError::Timeout { op: "connect", .. }), "{error:?}");
    assert!(Instant::now() < deadline + Duration::from_secs(3));
}
