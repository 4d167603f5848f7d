//! Where the time of a chunk goes: all services, a real broker, one session. Prints a JSON line and a table for each world
//! size. Warm-up chunks are excluded, and the line says how many.

use std::time::Instant;

use clap::Parser;
use contract::event::ChunkReport;
use serde_json::{Map, Value, json};
use system_tests::{Cell, CellBuilder, Viewer};

#[derive(Debug, Parser)]
struct Args {
    /// World sizes to measure, one after another.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    world_size: Vec<u16>,
    #[arg(long, default_value = "tiny")]
    model: String,
    /// `cpu` or `cuda:N`, of every service that computes.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// All ranks on one GPU, which NCCL allows only where each believes itself on a host of its own: slow, for tests.
    #[arg(long)]
    share_gpu: bool,
    /// Chunks measured for each world size.
    #[arg(long, default_value_t = 40)]
    chunks: u64,
    /// Chunks before the measurement, not counted.
    #[arg(long, default_value_t = 5)]
    warm_up: u64,
    /// A prompt change is sent every so many chunks.
    #[arg(long, default_value_t = 4)]
    change_every: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    for world_size in &args.world_size {
        let line = measure(&args, *world_size).await?;
        println!("{line}");
        table(&line);
    }
    Ok(())
}

fn cell(args: &Args, world_size: u16) -> CellBuilder {
    let mut cell = Cell::builder().world_size(world_size).model(&args.model);
    let ranks =
        std::iter::once("leader".to_owned()).chain((1..world_size).map(|rank| format!("worker{rank}")));
    for process in ranks {
        cell = cell.env(&process, "KINEMESH_DEVICE__KIND", &args.device);
        if args.share_gpu {
            cell = cell.env(&process, "NCCL_HOSTID", &process).env(&process, "NCCL_SOCKET_IFNAME", "lo");
        }
    }
    cell.env("stage0", "KINEMESH_DEVICE__KIND", &args.device)
}

async fn measure(args: &Args, world_size: u16) -> anyhow::Result<Value> {
    let cell = cell(args, world_size).ready().await;
    let bus = cell.bus("gateway").await;
    let mut viewer = Viewer::open(&bus, &cell.id(), &json!({"prompts": [{"text": "a red fox"}]})).await;
    for _ in 0..args.warm_up.max(2) {
        viewer.chunk().await;
    }
    let (started, mut reports) = (Instant::now(), Vec::new());
    for number in 0..args.chunks {
        if number % args.change_every == 0 {
            let text = format!("scene {number}");
            viewer.update(&json!({"prompts": [{"text": text}]})).await?;
        }
        reports.push(viewer.chunk().await);
    }
    let seconds = started.elapsed().as_secs_f64();
    let size = viewer.created.size;
    viewer.end().await;
    let frames: u32 = reports.iter().map(|report| report.frames).sum();
    Ok(json!({
        "bench": "chunk", "model": args.model, "device": args.device, "ranks_share_a_gpu": args.share_gpu, "world_size": world_size,
        "size": size.to_string(), "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "chunks": args.chunks, "warm_up_chunks_excluded": args.warm_up.max(2),
        "frames_per_second": f64::from(frames) / seconds,
        "dropped_frames": reports.last().map_or(0, |report| report.dropped_frames),
        "phases_ms": phases(&reports),
        "broker": broker(&reports),
    }))
}

type Phase = (&'static str, fn(&ChunkReport) -> u64);

const PHASES: [Phase; 14] = [
    ("chunk", |r| r.timings.chunk_us),
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

/// Median and 95th percentile of each phase, in milliseconds. Zeros mean "did not happen" and are left out.
fn phases(reports: &[ChunkReport]) -> Value {
    let row = |(name, get): &Phase| {
        let (median, p95) = percentiles(reports.iter().map(get).filter(|us| *us > 0).collect());
        ((*name).to_owned(), json!({"median": median, "p95": p95}))
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
    let (median, p95) = percentiles(reports.iter().map(time).collect());
    let chunk: u64 = reports.iter().map(|report| report.timings.chunk_us).sum();
    let total: u64 = reports.iter().map(time).sum();
    json!({"median_ms": median, "p95_ms": p95, "share_of_chunk": total as f64 / chunk.max(1) as f64})
}

fn percentiles(mut micros: Vec<u64>) -> (f64, f64) {
    if micros.is_empty() {
        return (0.0, 0.0);
    }
    micros.sort_unstable();
    let at = |quantile: f64| micros[((micros.len() - 1) as f64 * quantile).round() as usize] as f64 / 1000.0;
    (at(0.5), at(0.95))
}

fn table(line: &Value) {
    eprintln!("\nworld size {}, {} {}", line["world_size"], line["model"], line["size"]);
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
