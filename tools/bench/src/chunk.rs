//! `chunk`: where the time of a chunk goes. All services, a real broker, one session; a line and a table for each world
//! size.

use std::time::Instant;

use anyhow::Result;
use contract::event::ChunkReport;
use contract::model::Size;
use serde_json::{Map, Value, json};
use system_tests::{Viewer, viewer};
use tokio::runtime::Runtime;
use wan::config::ModelConfig;

use crate::cell::{self, CellOptions};
use crate::options::{self, SizeOptions};
use crate::statistics::Summary;
use crate::{line, machine};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// World sizes to measure, one after another.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    world_size: Vec<u16>,
    #[command(flatten)]
    cell: CellOptions,
    #[command(flatten)]
    size: SizeOptions,
    /// Chunks measured for each world size.
    #[arg(long, default_value = "40", value_parser = clap::value_parser!(u64).range(1..))]
    chunks: u64,
    /// Chunks before the measurement, not counted.
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u64).range(2..))]
    warm_up: u64,
    /// A prompt change is sent every so many chunks.
    #[arg(long, default_value = "4", value_parser = clap::value_parser!(u64).range(1..))]
    change_every: u64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let configs = options.world_size.iter().map(|world_size| options.cell.config(*world_size));
    let configs = configs.collect::<Result<Vec<_>>>()?;
    for (world_size, config) in options.world_size.iter().zip(&configs) {
        let size = options.size.served(config)?;
        let line = Runtime::new()?.block_on(measure(options, config, size, *world_size))?;
        println!("{line}");
        table(&line);
    }
    Ok(())
}

async fn measure(options: &Options, config: &ModelConfig, size: Size, world_size: u16) -> Result<Value> {
    let device = options.cell.device(world_size)?;
    let cell = options.cell.cell(device, world_size).ready().await;
    let bus = cell.bus("gateway").await;
    let mut request = viewer::creation(&json!({"prompts": [{"text": "a red fox"}]}));
    request.size = Some(size);
    let mut viewer = Viewer::create(&bus, &cell.id(), request).await?;
    for _ in 0..options.warm_up {
        viewer.chunk().await;
    }
    let (started, mut reports) = (Instant::now(), Vec::new());
    for number in 0..options.chunks {
        if number % options.change_every == 0 {
            let text = format!("scene {number}");
            viewer.update(&json!({"prompts": [{"text": text}]})).await?;
        }
        reports.push(viewer.chunk().await);
    }
    let seconds = started.elapsed().as_secs_f64();
    let memory =
        json!({"host_peak_mib": cell::peak_mib(&cell), "device_memory_mib": machine::device_mib(device)?});
    viewer.end().await;
    let frames: u32 = reports.iter().map(|report| report.frames).sum();
    Ok(line::join([
        json!({"bench": "chunk"}),
        machine::conditions(device)?,
        options.cell.conditions(config, device, world_size),
        options::generator_conditions(config, &options::ops(config, device)),
        json!({
            "height": size.height, "width": size.width, "change_every": options.change_every,
            "chunks": options.chunks, "warm_up_chunks_excluded": options.warm_up,
            "frames_per_second": f64::from(frames) / seconds,
            "dropped_frames": reports.last().map_or(0, |report| report.dropped_frames),
            "phases_ms": phases(&reports), "broker": broker(&reports),
        }),
        memory,
    ]))
}

type Phase = (&'static str, fn(&ChunkReport) -> u64);

const PHASES: [Phase; 15] = [
    ("chunk", |r| r.timings.chunk_us),
    // In which the mesh has nothing to do: what one GPU more for stage 0 cannot take off.
    ("between calls", |r| r.timings.chunk_us.saturating_sub(r.timings.call_us)),
    ("text", |r| r.timings.text_us),
    ("envelope", |r| r.timings.envelope_us),
    ("link", |r| r.timings.link_us),
    ("call", |r| r.timings.call_us),
    ("plan round trip", |r| r.timings.mesh.plan_us),
    ("go round trip", |r| r.timings.mesh.go_us),
    ("broadcast", |r| r.timings.mesh.broadcast_us),
    ("generator", |r| r.timings.mesh.generator_us),
    ("finish", |r| r.timings.mesh.finish_us),
    ("decode head", |r| r.timings.decode_head_us),
    ("decode rest", |r| r.timings.decode_rest_us),
    ("encode", |r| r.timings.encode_us),
    ("parameter to packet", |r| r.timings.parameter_to_packet_us),
];

/// Each phase in milliseconds. Zeros mean "did not happen" and are left out.
fn phases(reports: &[ChunkReport]) -> Value {
    let row = |(name, get): &Phase| {
        let times = reports.iter().map(get).filter(|us| *us > 0);
        ((*name).to_owned(), Summary::of(times.map(ms)).json())
    };
    Value::Object(PHASES.iter().map(row).collect::<Map<_, _>>())
}

/// What the broker costs: the part of a call that no phase at the leader accounts for, and the plan and go round trips.
fn broker(reports: &[ChunkReport]) -> Value {
    let time = |report: &ChunkReport| {
        let mesh = &report.timings.mesh;
        let inside = mesh.broadcast_us + mesh.generator_us + mesh.finish_us;
        report.timings.call_us.saturating_sub(inside)
    };
    let chunk: u64 = reports.iter().map(|report| report.timings.chunk_us).sum();
    let total: u64 = reports.iter().map(time).sum();
    let times = Summary::of(reports.iter().map(time).map(ms));
    json!({
        "median_ms": times.median, "p95_ms": times.p95, "share_of_chunk": total as f64 / chunk.max(1) as f64,
    })
}

fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

fn table(line: &Value) {
    eprintln!("\nworld size {}, {} {}x{}", line["world_size"], line["model"], line["height"], line["width"]);
    eprintln!("{:<22}{:>12}{:>12}", "phase", "median ms", "p95 ms");
    for (name, row) in line["phases_ms"].as_object().into_iter().flatten() {
        eprintln!("{name:<22}{:>12.2}{:>12.2}", number(&row["median"]), number(&row["p95"]));
    }
    let broker = &line["broker"];
    eprintln!("{:<22}{:>12.2}{:>12.2}", "broker", number(&broker["median_ms"]), number(&broker["p95_ms"]));
    eprintln!(
        "{:.1} frames a second, broker {:.2} % of a chunk, {} frames dropped",
        number(&line["frames_per_second"]),
        100.0 * number(&broker["share_of_chunk"]),
        line["dropped_frames"]
    );
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}
