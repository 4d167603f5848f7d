//! Every fault of every process of a real stack, one after another, while a viewer watches: what it cost, as a JSON line
//! for each and as a table.

use std::time::Duration;

use clap::Parser;
use system_tests::Fault;
use system_tests::cell::BROKER;
use system_tests::fault::{BROKER_FAULTS, PROCESSES, SERVICE_FAULTS};
use system_tests::ordeal::{Cost, Ordeal};

#[derive(Debug, Parser)]
struct Args {
    /// Every fault; without it, the deaths alone.
    #[arg(long)]
    all: bool,
    /// Only these processes: gateway, stage0, leader, worker1, nats.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let mut ordeal = Ordeal::start().await;
    let mut costs = Vec::new();
    let chosen = |process: &&str| args.only.is_empty() || args.only.iter().any(|name| name == process);
    for process in PROCESSES.into_iter().filter(chosen) {
        for fault in faults(process, args.all) {
            let cost = ordeal.strike(fault, process).await;
            println!("{}", cost.json());
            costs.push(cost);
        }
    }
    ordeal.end().await;
    table(&costs);
}

fn faults(process: &str, all: bool) -> Vec<Fault> {
    match process {
        _ if !all => vec![Fault::Kill],
        BROKER => BROKER_FAULTS.to_vec(),
        _ => SERVICE_FAULTS.to_vec(),
    }
}

fn table(costs: &[Cost]) {
    println!(
        "\n| process | fault | noticed after | frames again after | chunks lost | outcome | restarted |"
    );
    println!("| --- | --- | ---: | ---: | ---: | --- | --- |");
    let seconds =
        |time: Option<Duration>| time.map_or("-".to_owned(), |time| format!("{:.2} s", time.as_secs_f32()));
    for cost in costs {
        let (noticed, again) = (seconds(cost.trace.noticed_after()), seconds(cost.trace.again_after()));
        let (lost, outcome, restarted) =
            (cost.trace.chunks_lost(), cost.outcome(), cost.restarted.join(", "));
        println!(
            "| {} | {} | {noticed} | {again} | {lost} | {outcome} | {restarted} |",
            cost.process, cost.fault
        );
    }
}
