//! `link`: what the stage boundary costs by itself. The latents of one chunk cross each link that is asked for, between two
//! processes as in a cell, and a small request crosses a real broker.

mod broker;
mod stage0;

use std::env;
use std::process::Command;

use anyhow::Result;
use contract::link::LinkKind;
use contract::tensor::TensorKey;
use device::DeviceKind;
use latents::Rings;
use serde_json::{Value, json};
use tch::{Device, Tensor};
use tokio::runtime::Runtime;
use wan::noise::block_noise;
use xtask::command;
use xtask::outcome::Refused;

use self::stage0::Stage0;
use crate::options::{self, ModelOptions, SizeOptions, Subject};
use crate::statistics::Summary;
use crate::{line, machine};

/// Slots in each direction, as many as one call needs of them and some more.
const SLOTS: u32 = 4;
/// What makes a process of NCCL believe itself on a host of its own.
const HOST: &str = "NCCL_HOSTID";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    size: SizeOptions,
    /// `shm`, `cuda-ipc` or `nccl`; several, with commas, get a line each.
    #[arg(long, default_value = "shm", value_delimiter = ',', value_parser = options::parse_link)]
    link: Vec<LinkKind>,
    /// stage 0's; default: that of the leader, `--device`. On one GPU `nccl` is slow, for tests.
    #[arg(long)]
    stage0_device: Option<DeviceKind>,
    /// Chunks measured, and round trips through the broker.
    #[arg(long, default_value = "200", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: u32,
    /// Chunks and round trips before the measurement, not counted.
    #[arg(long, default_value_t = 20)]
    warm_up: u32,
}

impl Options {
    fn rounds(&self) -> u32 {
        self.warm_up + self.chunks
    }

    fn steady(&self, times: &[f64]) -> Value {
        Summary::of(times.iter().copied().skip(self.warm_up as usize)).json()
    }
}

/// Milliseconds to the mesh and back, of each chunk.
struct Times {
    to_mesh: Vec<f64>,
    from_mesh: Vec<f64>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let subject = options.model.at(options.size)?;
    let leader = options::resolve(options.model.device)?;
    let own = |kind| options::resolve_for("--stage0-device", kind);
    let stage0 = options.stage0_device.map_or(Ok(leader), own)?;
    if let Some(task) = Stage0::asked_for() {
        return stage0::serve(&task?, stage0);
    }
    for link in &options.link {
        let check = latents::check(*link, leader).and_then(|()| latents::check(*link, stage0));
        check.map_err(|e| Refused(format!("--link: {}", e.message)))?;
    }
    if options.link.contains(&LinkKind::Nccl) && leader == stage0 && env::var_os(HOST).is_none() {
        return on_a_host_of_its_own();
    }
    let round_trips = Runtime::new()?.block_on(broker::round_trips(options.rounds()))?;
    for link in &options.link {
        let latents = latents_of(&subject)?.f_to_device(leader)?;
        let times = measure(*link, options, &latents, leader)?;
        println!("{}", report(*link, options, &subject, &latents, [leader, stage0], &times, &round_trips)?);
    }
    Ok(())
}

/// This program again: what NCCL is told of the host has to be told to a process before it starts.
fn on_a_host_of_its_own() -> Result<()> {
    let mut again = Command::new(env::current_exe()?);
    again.args(env::args_os().skip(1)).env(HOST, "leader").env("NCCL_SOCKET_IFNAME", "lo");
    command::die_with_parent(&mut again, libc::SIGKILL);
    command::check("kinemesh-bench link", again.status()?)
}

/// What both processes make alike, on the CPU.
fn latents_of(subject: &Subject) -> Result<Tensor> {
    let [_, frames, channels, rows, columns] = subject.latents();
    Ok(block_noise(42, 0, frames, channels, rows, columns)?)
}

/// The time of a direction is that of the write at one end and of the read at the other: the message that names the slot is
/// the broker's.
fn measure(kind: LinkKind, options: &Options, latents: &Tensor, device: Device) -> Result<Times> {
    let bytes = (latents.numel() * size_of::<f32>()) as u64;
    let rings = Rings {
        prefix: "kinemesh-bench",
        slots_in: SLOTS,
        slots_out: SLOTS,
        slot_bytes: bytes,
        link_epoch: 1,
        bind: "127.0.0.1:0",
    };
    let (mut leader, descriptor) = latents::create(kind, device, &rings)?;
    let mut stage0 = Stage0::start(&descriptor, &latents.size())?;
    let mut times = Times { to_mesh: Vec::new(), from_mesh: Vec::new() };
    for _ in 0..options.rounds() {
        let (written, spec) = stage0.write()?;
        let (read, tensor) = stage0::take(&mut *leader, &spec, device)?;
        anyhow::ensure!(tensor.equal(latents), "other latents came out of the link than went in");
        times.to_mesh.push(written + read);
        let (written, spec) = machine::ms(device, || Ok(leader.write(TensorKey::LatentsOut, latents)?))?;
        times.from_mesh.push(written + stage0.read(&spec)?);
    }
    Ok(times)
}

fn report(
    link: LinkKind,
    options: &Options,
    subject: &Subject,
    latents: &Tensor,
    [leader, stage0]: [Device; 2],
    times: &Times,
    round_trips: &[f64],
) -> Result<Value> {
    Ok(line::join([
        json!({"bench": "link", "link": link.as_str()}),
        machine::conditions(leader)?,
        subject.conditions(),
        // A link carries what the model's info says, whatever the models compute in.
        json!({
            "precision": "f32", "shape": latents.size(), "bytes": latents.numel() * size_of::<f32>(),
            "stage0_device": machine::name(stage0), "ends_share_a_gpu": leader.is_cuda() && leader == stage0,
            "chunks": options.chunks, "warm_up_chunks_excluded": options.warm_up,
            "to_mesh_ms": options.steady(&times.to_mesh), "from_mesh_ms": options.steady(&times.from_mesh),
            "broker_bytes": broker::MESSAGE, "broker_round_trip_ms": options.steady(round_trips),
        }),
        machine::memory(leader)?,
    ]))
}
