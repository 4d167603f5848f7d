//! The ranks of one group, each a process of this program.

use std::env;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use collectives::{Collective, Rendezvous, Solo};
use device::DeviceKind;
use tch::Device;
use xtask::command;

use crate::options;

/// What a rank is told by the process that started it.
const RANK: &str = "KINEMESH_BENCH_RANK";
const RENDEZVOUS: &str = "KINEMESH_BENCH_RENDEZVOUS";
/// libtorch's threads: where the user has not said how many, the ranks share the cores.
const THREADS: &str = "OMP_NUM_THREADS";

const CONNECT: Duration = Duration::from_secs(60);
/// One chunk or one collective call.
pub(crate) const CALL: Duration = Duration::from_secs(600);
/// Everything, weights included.
const RUN: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct GroupOptions {
    /// All ranks on one GPU, which NCCL allows only where each believes itself on a host of its own: slow, for tests.
    /// Otherwise each rank takes the GPU after the one before it.
    #[arg(long)]
    pub(crate) share_gpu: bool,
}

/// One rank's place.
pub(crate) struct Member {
    pub(crate) collective: Arc<dyn Collective>,
    pub(crate) device: Device,
}

impl Member {
    pub(crate) fn is_first(&self) -> bool {
        self.collective.rank() == 0
    }
}

/// Runs `measure` on every rank of a group of `world_size`, in a process each if there are several, and waits for all.
///
/// # Errors
/// A device is missing, the group does not form, or a rank fails.
pub(crate) fn run(
    world_size: u32,
    device: DeviceKind,
    group: GroupOptions,
    measure: impl FnOnce(&Member) -> Result<()>,
) -> Result<()> {
    if world_size == 1 {
        return measure(&Member { collective: Arc::new(Solo::new()), device: options::resolve(device)? });
    }
    let Ok(rendezvous) = env::var(RENDEZVOUS) else { return launch(world_size, device, group) };
    let rank: u32 = env::var(RANK)?.parse().context(RANK)?;
    let device = device_of(device, rank, group.share_gpu)?;
    let rendezvous = Rendezvous::from_bytes(&hex::decode(rendezvous)?)?;
    let collective = rendezvous.connect(device, rank, world_size, Instant::now() + CONNECT)?;
    measure(&Member { collective, device })
}

fn device_of(kind: DeviceKind, rank: u32, share: bool) -> Result<Device> {
    match options::resolve(kind)? {
        Device::Cuda(first) if !share => options::resolve(DeviceKind::Cuda(first + rank as usize)),
        device => Ok(device),
    }
}

/// Starts the ranks. If one fails this process ends with its exit code, and the kernel ends the others with it.
fn launch(world_size: u32, device: DeviceKind, group: GroupOptions) -> Result<()> {
    let last = device_of(device, world_size - 1, group.share_gpu)?;
    let rendezvous = Rendezvous::create(last, world_size)?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = env::var(THREADS).unwrap_or_else(|_| (cores / world_size as usize).max(1).to_string());
    let (ended, ends) = mpsc::sync_channel(world_size as usize);
    for rank in 0..world_size {
        let mut child = Command::new(env::current_exe()?);
        child.args(env::args_os().skip(1)).env(RANK, rank.to_string()).env(THREADS, &threads);
        child.env(RENDEZVOUS, hex::encode(rendezvous.to_bytes()));
        if group.share_gpu {
            child.env("NCCL_HOSTID", format!("rank-{rank}")).env("NCCL_SOCKET_IFNAME", "lo");
        }
        command::die_with_parent(&mut child, libc::SIGKILL);
        let mut child = child.spawn().with_context(|| format!("rank {rank} cannot be started"))?;
        let ended = ended.clone();
        thread::spawn(move || ended.send((rank, child.wait())));
    }
    let end = Instant::now() + RUN;
    for _ in 0..world_size {
        let left = end.saturating_duration_since(Instant::now());
        let (rank, status) =
            ends.recv_timeout(left).with_context(|| format!("a rank runs for more than {RUN:?}"))?;
        command::check(&format!("rank {rank}"), status?)?;
    }
    Ok(())
}
