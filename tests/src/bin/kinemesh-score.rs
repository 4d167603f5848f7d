//! How often the demo model shows what it was asked for: real services, encoded video, attributes read off the pixels.
//! Prints lines for the table of the model's card, and a JSON line with all conditions for each section.

use std::time::Instant;

use clap::Parser;
use contract::Digest;
use demo_world::caption::Style;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use system_tests::cell::layout;
use system_tests::score::{self, Section, Theatre, change, forms, long, shown, truth, wishes, world_sizes};

/// Sections are left out by a count of 0. All are drawn from the seed: the same prompts, streams and noise every time.
#[derive(Debug, Parser)]
struct Args {
    /// Clips of ground truth that the measuring tool itself is measured on.
    #[arg(long, default_value_t = 200)]
    truth: usize,
    /// Prompts, every second one of a combination held out of training.
    #[arg(long, default_value_t = 200)]
    prompts: usize,
    /// Chunks of each of them; the last four are looked at.
    #[arg(long, default_value_t = 10)]
    chunks: usize,
    /// Of these prompts, so many once more in sentence forms that training never showed.
    #[arg(long, default_value_t = 100)]
    paraphrase: usize,
    /// Changes in mid-stream, and as many transitions.
    #[arg(long, default_value_t = 40)]
    change: usize,
    /// Prompts that are streamed on.
    #[arg(long, default_value_t = 20)]
    long: usize,
    /// Chunks until those are looked at again.
    #[arg(long, default_value_t = 120)]
    long_chunks: usize,
    /// Prompts that are compared between world sizes.
    #[arg(long, default_value_t = 4)]
    compare: usize,
    /// World sizes that are compared; each has a cell of its own.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4")]
    world_sizes: Vec<u16>,
    /// World size of everything else.
    #[arg(long, default_value_t = 2)]
    world_size: u16,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Args {
    fn streams(&self) -> usize {
        let asked = self.prompts.max(self.paraphrase) + self.paraphrase;
        asked * self.chunks + self.long * self.long_chunks + 2 * self.change * change::CHUNKS
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(args.long_chunks > args.chunks, "--long-chunks has to be more than --chunks");
    let report = Report { conditions: conditions(&args)?, started: Instant::now() };
    println!("{}", Section::head());
    if args.truth > 0 {
        report.tell(&truth::section(args.truth, args.seed));
    }
    if args.streams() > 0 {
        stream(&args, &report).await?;
    }
    if args.compare > 0 {
        let bar = bar(args.compare * args.chunks * args.world_sizes.len())?;
        let wishes = wishes(args.compare, Style::Varied, args.seed);
        report.tell(&world_sizes::section(&args.world_sizes, &wishes, args.chunks, &bar).await);
        bar.finish_and_clear();
    }
    Ok(())
}

/// What one cell answers.
async fn stream(args: &Args, report: &Report) -> anyhow::Result<()> {
    let bar = bar(args.streams())?;
    let theatre = Theatre::open(args.world_size, &bar).await;
    let drawn = wishes(args.prompts.max(args.paraphrase), Style::Varied, args.seed);
    let learnt = shown::outcomes(&theatre, drawn, args.chunks).await;
    if args.prompts > 0 {
        bar.suspend(|| report.tell(&shown::section(&learnt[..args.prompts], args.chunks)));
    }
    if args.paraphrase > 0 {
        let other = wishes(args.paraphrase, Style::Rephrased, args.seed);
        let other = shown::outcomes(&theatre, other, args.chunks).await;
        bar.suspend(|| report.tell(&forms::section(&learnt[..args.paraphrase], &other)));
    }
    if args.change > 0 {
        let section = change::section(&theatre, args.change, args.seed).await;
        bar.suspend(|| report.tell(&section));
    }
    if args.long > 0 {
        let wishes = wishes(args.long, Style::Varied, args.seed);
        let section = long::section(&theatre, &wishes, args.chunks, args.long_chunks).await;
        bar.suspend(|| report.tell(&section));
    }
    bar.finish_and_clear();
    theatre.close().await;
    Ok(())
}

struct Report {
    conditions: Value,
    started: Instant,
}

impl Report {
    fn tell(&self, section: &Section) {
        let mut line = section.json(&self.conditions);
        line["seconds_since_the_start"] = json!(self.started.elapsed().as_secs());
        println!("{section}\n\n{line}\n");
    }
}

fn bar(chunks: usize) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:40} {pos} of {len} chunks, {elapsed} gone, {eta} to go")?;
    Ok(ProgressBar::new(chunks as u64).with_style(style))
}

fn conditions(args: &Args) -> anyhow::Result<Value> {
    Ok(json!({
        "model": "demo", "weights": weights()?, "seed": args.seed, "world_size": args.world_size,
        "chunks": args.chunks, "long_chunks": args.long_chunks, "frames_looked_at": score::LOOKED_AT,
        "codec": "h264", "cores": std::thread::available_parallelism().map_or(0, usize::from),
    }))
}

/// One digest over all files of the model.
fn weights() -> anyhow::Result<Digest> {
    let folder =
        layout().shipped_weights("demo").ok_or_else(|| anyhow::anyhow!("there is no models/demo"))?;
    let files = ["config.json", "tokenizer.json", "text.safetensors", "dit.safetensors", "vae.safetensors"];
    let contents =
        files.iter().map(|file| std::fs::read(folder.join(file))).collect::<Result<Vec<_>, _>>()?;
    Ok(Digest::of(&contents.iter().map(Vec::as_slice).collect::<Vec<_>>()))
}
