//! Random faults for minutes while a viewer watches: what became of memory, descriptors, shared memory and sessions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Parser;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;
use system_tests::cell::BROKER;
use system_tests::fault::{BROKER_FAULTS, PROCESSES, SERVICE_FAULTS};
use system_tests::ordeal::{Ordeal, Vitals};
use system_tests::{Cell, leftovers};

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Repeats the faults of an earlier run.
    #[arg(long)]
    seed: Option<u64>,
}

/// A process may end with so much more than it began with: buffers that grow to their bound are no leak.
const MORE_DESCRIPTORS: usize = 8;
/// The most that a process held in the second half, whichever life it was in, over the most in the first half. Memory that is
/// flat is as high there; what leaks is higher, however often it began anew.
const MORE_MEMORY: f64 = 1.25;
const SLACK_KIB: u64 = 8 * 1024;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(rand::random);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut ordeal = Ordeal::start(Cell::builder()).await;
    let (started, start) = (Instant::now(), ordeal.vitals());
    let (mut faults, mut lives_lost, mut chunks, mut slowest) = (0, 0, 0, Duration::ZERO);
    let (whole, mut peaks) = (Duration::from_secs(60 * args.minutes), BTreeMap::<String, Peaks>::new());
    while started.elapsed() < whole {
        let process = PROCESSES[rng.random_range(0..PROCESSES.len())];
        let of: &[_] = if process == BROKER { &BROKER_FAULTS } else { &SERVICE_FAULTS };
        let Some(fault) = of.choose(&mut rng) else { continue };
        let cost = ordeal.strike(*fault, process).await;
        println!("{}", cost.json());
        faults += 1;
        lives_lost += cost.trace.lives_lost;
        chunks += cost.trace.chunks.len();
        slowest = slowest.max(cost.trace.again_after().unwrap_or_default());
        anyhow::ensure!(ordeal.sessions().await == 1, "one viewer, but not one session");
        let second = usize::from(started.elapsed() > whole / 2);
        for (name, vitals) in ordeal.vitals() {
            let peak = &mut peaks.entry(name).or_default().0[second];
            *peak = vitals.resident_kib.max(*peak);
        }
    }
    let end = ordeal.vitals();
    let unmapped = leftovers::unmapped_memory();
    ordeal.end().await;
    println!(
        "{}",
        json!({
            "soak": "faults", "seed": seed, "minutes": args.minutes, "faults": faults, "chunks_seen": chunks,
            "lives_lost": lives_lost, "slowest_recovery_ms": slowest.as_millis() as u64,
            "unmapped_segments": unmapped.len(),
        })
    );
    table(&start, &end, &peaks);
    check(&start, &end, &peaks)
}

/// The most that a process held in each half, in KiB.
#[derive(Clone, Copy, Debug, Default)]
struct Peaks([u64; 2]);

fn table(start: &BTreeMap<String, Vitals>, end: &BTreeMap<String, Vitals>, peaks: &BTreeMap<String, Peaks>) {
    println!(
        "\n| process | MiB at start | most in the first half | in the second | descriptors at start | at end | segments at start | at end | same process |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |");
    for (name, before) in start {
        let (Some(after), Some(Peaks([first, second]))) = (end.get(name), peaks.get(name)) else { continue };
        println!(
            "| {name} | {} | {} | {} | {} | {} | {} | {} | {} |",
            before.resident_kib / 1024,
            first / 1024,
            second / 1024,
            before.descriptors,
            after.descriptors,
            before.segments,
            after.segments,
            if before.pid == after.pid { "yes" } else { "no" }
        );
    }
}

fn check(
    start: &BTreeMap<String, Vitals>,
    end: &BTreeMap<String, Vitals>,
    peaks: &BTreeMap<String, Peaks>,
) -> anyhow::Result<()> {
    for (name, before) in start {
        let after = end.get(name).ok_or_else(|| anyhow::anyhow!("{name} is gone"))?;
        anyhow::ensure!(after.segments <= before.segments, "{name} keeps shared memory: {after:?}");
        anyhow::ensure!(
            after.descriptors <= before.descriptors + MORE_DESCRIPTORS,
            "{name} leaks descriptors: {before:?}, then {after:?}"
        );
    }
    // The broker is not ours: it is shown, and not judged.
    for (name, Peaks([first, second])) in peaks.iter().filter(|(name, _)| *name != BROKER) {
        anyhow::ensure!(
            *second as f64 <= (first + SLACK_KIB) as f64 * MORE_MEMORY,
            "{name} leaks memory: {first} KiB at most in the first half, {second} in the second"
        );
    }
    Ok(())
}
