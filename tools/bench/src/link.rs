//! `link`: what the stage boundary costs by itself. The latents of one chunk cross each link there is, and a small request
//! crosses a real broker.

use std::time::Instant;

use anyhow::Result;
use bus::ServiceInfo;
use contract::tensor::TensorKey;
use contract::{Budget, Deadline, SessionId, subjects};
use latents::{LatentLink, RingLink, Rings, shm};
use serde_json::json;
use system_tests::Cell;
use tch::{Device, Tensor};
use tokio::runtime::Runtime;
use wan::noise::block_noise;

use crate::options::{self, ModelOptions, SizeOptions};
use crate::statistics::Summary;
use crate::{line, machine};

/// Bytes of a request and of its answer.
const MESSAGE: usize = 200;
/// Slots in each direction, as many as one call needs of them and some more.
const SLOTS: u32 = 4;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    size: SizeOptions,
    /// Chunks measured, and round trips through the broker.
    #[arg(long, default_value = "200", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: u32,
    /// Chunks and round trips before the measurement, not counted.
    #[arg(long, default_value_t = 20)]
    warm_up: u32,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let subject = options.model.at(options.size)?;
    let device = options::resolve(options.model.device)?;
    let [_, frames, channels, rows, columns] = subject.latents();
    let latents = block_noise(42, 0, frames, channels, rows, columns)?.f_to_device(device)?;
    let bytes = latents.numel() * size_of::<f32>();
    let (mut stage0, mut leader) = ends(bytes as u64)?;
    let (mut to_mesh, mut from_mesh) = (Vec::new(), Vec::new());
    for _ in 0..options.warm_up + options.chunks {
        let there = pass(&mut stage0, &mut leader, TensorKey::LatentsIn, &latents, device)?;
        let back = pass(&mut leader, &mut stage0, TensorKey::LatentsOut, &latents, device)?;
        to_mesh.push(there);
        from_mesh.push(back);
    }
    let round_trips = Runtime::new()?.block_on(broker(options.warm_up + options.chunks))?;
    let steady = |times: Vec<f64>| Summary::of(times.into_iter().skip(options.warm_up as usize)).json();
    let line = line::join([
        json!({"bench": "link", "link": "shm"}),
        machine::conditions(device)?,
        subject.conditions(),
        // A link carries what the model's info says, whatever the models compute in.
        json!({
            "precision": "f32", "shape": latents.size(), "bytes": bytes, "chunks": options.chunks,
            "warm_up_chunks_excluded": options.warm_up, "to_mesh_ms": steady(to_mesh),
            "from_mesh_ms": steady(from_mesh), "broker_bytes": MESSAGE, "broker_round_trip_ms": steady(round_trips),
        }),
        machine::memory(device)?,
    ]);
    println!("{line}");
    Ok(())
}

/// Both ends: stage 0's and the leader's.
fn ends(slot_bytes: u64) -> Result<(RingLink, RingLink)> {
    let prefix = "kinemesh-bench";
    let rings = Rings { prefix, slots_in: SLOTS, slots_out: SLOTS, slot_bytes, link_epoch: 1, bind: "" };
    let (leader, descriptor) = shm::create(&rings)?;
    Ok((shm::open(&descriptor)?, leader))
}

/// Milliseconds from a tensor on the device at one end to the same at the other, its slot given back.
fn pass(
    from: &mut dyn LatentLink,
    to: &mut dyn LatentLink,
    key: TensorKey,
    tensor: &Tensor,
    device: Device,
) -> Result<f64> {
    let (ms, read) = machine::ms(device, || {
        let spec = from.write(key, tensor)?;
        let read = to.read(&spec)?.f_to_device(device)?;
        to.release(spec.slot, spec.generation)?;
        Ok(read)
    })?;
    anyhow::ensure!(read.equal(tensor), "other latents came out of the link than went in");
    Ok(ms)
}

/// Milliseconds of requests of one client that another answers at once, through a real broker.
async fn broker(count: u32) -> Result<Vec<f64>> {
    let services = ["gateway", "stage0", "leader"];
    let cell = services.into_iter().fold(Cell::builder().world_size(1), |cell, name| cell.without(name));
    let cell = cell.start().await;
    let (asks, answers) = (cell.bus("gateway").await, cell.bus("stage0").await);
    let info = ServiceInfo {
        name: "bench".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        description: "answers what it is asked".to_owned(),
        metadata: Default::default(),
    };
    let service = answers.service(info).await?;
    let subject = subjects::session_control(SessionId::random());
    let _echo = service.serve("echo", &subject, 1, |_, text: String| async move { Ok(text) }).await?;
    let (message, mut times) = ("x".repeat(MESSAGE), Vec::new());
    for _ in 0..count {
        let started = Instant::now();
        let deadline = Deadline::after(started, Budget::from_secs(5));
        let _: String = asks.request(&subject, &message, deadline).await?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}
