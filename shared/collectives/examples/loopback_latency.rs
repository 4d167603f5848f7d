//! Prints the time of one small all-reduce (192 x 128 f32) between two processes of this host.

use std::env;
use std::process::Command;
use std::time::{Duration, Instant};

use collectives::loopback::{Loopback, Rendezvous};
use collectives::{Collective, CollectiveError, ReduceOp};
use tch::{Device, Kind, Tensor};

const CALLS: usize = 20_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if let Some(bytes) = env::args().nth(1) {
        measure(&Rendezvous::from_bytes(&hex::decode(bytes)?)?, 1)?;
        return Ok(());
    }
    let rendezvous = Rendezvous::create(2)?;
    let mut peer = Command::new(env::current_exe()?).arg(hex::encode(rendezvous.to_bytes())).spawn()?;
    let mut times = measure(&rendezvous, 0)?;
    peer.wait()?;
    times.sort_unstable();
    let at = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e6;
    println!(
        "all_reduce 192x128 f32, 2 ranks: p50 {:.1} us, p90 {:.1} us, p99 {:.1} us",
        at(50),
        at(90),
        at(99)
    );
    Ok(())
}

fn measure(rendezvous: &Rendezvous, rank: u32) -> Result<Vec<Duration>, CollectiveError> {
    let soon = || Instant::now() + Duration::from_secs(20);
    let group = Loopback::connect(rendezvous, rank, 2, soon())?;
    let mut tensor = Tensor::zeros([192, 128], (Kind::Float, Device::Cpu));
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let start = Instant::now();
        group.all_reduce(&mut tensor, ReduceOp::Sum, soon())?;
        times.push(start.elapsed());
    }
    Ok(times)
}
