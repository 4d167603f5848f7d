//! `faults`: every process of a real stack is hurt while a viewer watches, round after round: what it cost, and what is
//! left of it in memory and among the processes. A row for each fault on stderr, one line at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use serde_json::{Map, Value, json};
use system_tests::cell::BROKER;
use system_tests::fault::{BROKER_FAULTS, PROCESSES, SERVICE_FAULTS};
use system_tests::ordeal::{Cost, Ordeal};
use system_tests::{Fault, leftovers};
use tch::Device;
use tokio::runtime::Runtime;

use crate::cell::CellOptions;
use crate::statistics::Summary;
use crate::{line, machine, options};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    cell: CellOptions,
    /// Every fault that a process can have, in place of `--faults`.
    #[arg(long, conflicts_with = "faults")]
    all: bool,
    #[arg(long, value_delimiter = ',', default_value = "kill")]
    faults: Vec<Name>,
    /// Only these processes.
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(PROCESSES))]
    only: Vec<String>,
    /// How often all of it happens.
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT some seconds later.
    Stop,
}

impl Name {
    fn is(self, fault: Fault) -> bool {
        matches!((self, fault), (Self::Kill, Fault::Kill) | (Self::Stop, Fault::Pause(_)))
    }
}

/// A mesh of two: the smallest in which a rank can be lost.
const WORLD_SIZE: u16 = 2;

pub(crate) fn run(options: &Options) -> Result<()> {
    let config = options.cell.config(WORLD_SIZE)?;
    let device = options.cell.device(WORLD_SIZE)?;
    let found = Runtime::new()?.block_on(suffer(options, device))?;
    let line = line::join([
        json!({"bench": "faults"}),
        machine::conditions(device)?,
        options.cell.conditions(&config, device, WORLD_SIZE),
        options::generator_conditions(&config, &options::ops(&config, device)),
        json!({"height": config.sizes[0].0, "width": config.sizes[0].1, "rounds": options.rounds}),
        found,
    ]);
    println!("{line}");
    Ok(())
}

async fn suffer(options: &Options, device: Device) -> Result<Value> {
    let mut ordeal = Ordeal::start(options.cell.cell(device, WORLD_SIZE)).await;
    let (mut costs, mut memory, mut orphans) = (Vec::new(), Memory::default(), 0);
    heading();
    memory.look(&ordeal, device)?;
    for _ in 0..options.rounds {
        for (process, fault) in chosen(options) {
            let cost = ordeal.strike(fault, process).await;
            row(&cost);
            costs.push(cost);
        }
        memory.look(&ordeal, device)?;
        orphans += ordeal.orphans().len();
    }
    let segments = leftovers::unmapped_memory().len();
    ordeal.end().await;
    Ok(json!({
        "faults": by_fault(&costs), "host_mib": memory.host_json(), "device_memory_mib": story(&memory.device),
        "left_over": {"processes": orphans, "segments": segments},
    }))
}

fn chosen(options: &Options) -> Vec<(&'static str, Fault)> {
    let only = |process: &&str| options.only.is_empty() || options.only.iter().any(|name| name == process);
    let faults = |process| {
        let all = if process == BROKER { &BROKER_FAULTS[..] } else { &SERVICE_FAULTS[..] };
        let wanted = |fault: &&Fault| options.all || options.faults.iter().any(|name| name.is(**fault));
        all.iter().filter(wanted).map(move |fault| (process, *fault))
    };
    PROCESSES.into_iter().filter(only).flat_map(faults).collect()
}

/// What each process had resident and what the device had in use, before the first round and after each, in MiB.
#[derive(Default)]
struct Memory {
    host: BTreeMap<String, Vec<u64>>,
    device: Vec<u64>,
}

impl Memory {
    fn look(&mut self, ordeal: &Ordeal, device: Device) -> Result<()> {
        for (process, vitals) in ordeal.vitals() {
            self.host.entry(process).or_default().push(vitals.resident_kib / 1024);
        }
        self.device.extend(machine::device_mib(device)?.map(|mib| mib as u64));
        Ok(())
    }

    fn host_json(&self) -> Value {
        Value::Object(self.host.iter().map(|(process, mib)| (process.clone(), story(mib))).collect())
    }
}

fn story(mib: &[u64]) -> Value {
    if mib.is_empty() {
        return Value::Null;
    }
    json!({"first": mib.first(), "last": mib.last(), "most": mib.iter().max(), "each": mib})
}

/// What each fault of each process cost over all rounds. A time that is counted less often than there were rounds did not
/// come: nobody noticed, or the mesh went on as it was.
fn by_fault(costs: &[Cost]) -> Vec<Value> {
    let mut grouped = BTreeMap::<(String, String), Vec<&Cost>>::new();
    for cost in costs {
        grouped.entry((cost.process.clone(), cost.fault.to_string())).or_default().push(cost);
    }
    let one = |((process, fault), costs): ((String, String), Vec<&Cost>)| {
        let times = |time: fn(&Cost) -> Option<Duration>| {
            let ms = costs.iter().filter_map(|cost| time(cost)).map(|time| time.as_secs_f64() * 1e3);
            Summary::of(ms).json()
        };
        let mut outcomes = Map::new();
        for cost in &costs {
            let count = outcomes.entry(cost.outcome()).or_insert(json!(0));
            *count = json!(count.as_u64().unwrap_or_default() + 1);
        }
        json!({
            "process": process, "fault": fault, "rounds": costs.len(),
            "noticed_ms": times(|cost| cost.trace.noticed_after()), "formed_again_ms": times(|cost| cost.formed_after),
            "frames_again_ms": times(|cost| cost.trace.again_after()),
            "chunks_lost": costs.iter().map(|cost| cost.trace.chunks_lost()).sum::<u64>(), "outcomes": outcomes,
        })
    };
    grouped.into_iter().map(one).collect()
}

fn heading() {
    eprintln!(
        "| process | fault | noticed after | formed again after | frames again after | chunks lost | outcome | restarted |"
    );
    eprintln!("| --- | --- | ---: | ---: | ---: | ---: | --- | --- |");
}

fn row(cost: &Cost) {
    let seconds =
        |time: Option<Duration>| time.map_or("-".to_owned(), |time| format!("{:.2} s", time.as_secs_f32()));
    eprintln!(
        "| {} | {} | {} | {} | {} | {} | {} | {} |",
        cost.process,
        cost.fault,
        seconds(cost.trace.noticed_after()),
        seconds(cost.formed_after),
        seconds(cost.trace.again_after()),
        cost.trace.chunks_lost(),
        cost.outcome(),
        cost.restarted.join(", ")
    );
}
