//! How long a stage trains, what it reports, and the files that its loss goes to.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

#[derive(Clone, Debug, clap::Args)]
pub struct Length {
    /// Steps of the stage.
    #[arg(long)]
    pub steps: Option<i64>,
    /// Seconds of the stage, over all its runs: for machines that are lent for a time.
    #[arg(long, conflicts_with = "steps")]
    pub seconds: Option<f64>,
    /// Seconds after which this run stops, its state saved.
    #[arg(long)]
    pub pause_after: Option<f64>,
    /// Steps after which this run stops, its state saved.
    #[arg(long)]
    pub pause_at: Option<i64>,
}

/// A stage under way.
#[derive(Debug)]
pub struct Budget {
    length: Length,
    started: Instant,
    seconds_before: f64,
    pub step: i64,
    bar: ProgressBar,
    curve: File,
    said: Instant,
}

impl Budget {
    /// # Errors
    /// The curve's file cannot be written.
    pub fn new(length: &Length, (step, seconds_before): (i64, f64), curve: &Path) -> Result<Self> {
        let bar = ProgressBar::new(1000)
            .with_style(ProgressStyle::with_template("{bar:40} {elapsed_precise} {msg}")?);
        let curve = OpenOptions::new()
            .create(true)
            .append(true)
            .open(curve)
            .with_context(|| format!("cannot write {}", curve.display()))?;
        let started = Instant::now();
        Ok(Self { length: length.clone(), started, seconds_before, step, bar, curve, said: started })
    }

    pub fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    /// Of the whole stage, in [0, 1].
    pub fn progress(&self) -> f64 {
        let progress = match (self.length.steps, self.length.seconds) {
            (Some(steps), _) => self.step as f64 / steps.max(1) as f64,
            (None, seconds) => self.seconds() / seconds.unwrap_or(60.0),
        };
        progress.clamp(0.0, 1.0)
    }

    pub fn goes_on(&self) -> bool {
        let paused = self.length.pause_at.is_some_and(|at| self.step >= at)
            || self.length.pause_after.is_some_and(|after| self.started.elapsed().as_secs_f64() >= after);
        self.progress() < 1.0 && !paused
    }

    /// A line of the curve: the step, the seconds, and what is named. Now and then also a line for people.
    ///
    /// # Errors
    /// The curve's file cannot be written.
    pub fn report(&mut self, values: &[(&str, f64)]) -> Result<()> {
        let fields: Vec<String> = values.iter().map(|(name, value)| format!("{name}={value:.5}")).collect();
        let line = format!("{},{:.1},{}", self.step, self.seconds(), fields.join(","));
        writeln!(self.curve, "{line}")?;
        self.bar.set_position((self.progress() * 1000.0) as u64);
        self.bar.set_message(fields.join(" "));
        if self.said.elapsed().as_secs() >= 10 && self.bar.is_hidden() {
            self.said = Instant::now();
            println!("{line}");
        }
        Ok(())
    }

    pub fn finish(&self) {
        self.bar.abandon();
    }
}
