//! From `main` to the exit code.

use std::future::Future;
use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use crate::clock::StallDetector;
use crate::config::{self, ConfigArgs, Loaded, ServiceConfig};
use crate::exit::{ExitCode, Outcome};
use crate::http::{self, Readiness};
use crate::metrics::Metrics;
use crate::recorder::Recorder;
use crate::shutdown::Shutdown;
use crate::{clock, metric_names, panics, signals, telemetry, watchdog};

/// Part of the grace kept for leaving once the body is done.
const LEAVE: Duration = Duration::from_millis(500);
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
const STALL_TICK: Duration = Duration::from_millis(200);
/// A tick that is later than this was not merely busy.
const STALL: Duration = Duration::from_millis(800);

/// Name, version and one line about a service; `env!("CARGO_PKG_VERSION")` is the version to give.
#[derive(Clone, Copy, Debug)]
pub struct About {
    pub name: &'static str,
    pub version: &'static str,
    pub about: &'static str,
}

/// What the body of a service is given.
pub struct Context<C> {
    pub about: About,
    pub config: Loaded<C>,
    pub shutdown: Shutdown,
    /// Starts as waiting for `starting`.
    pub readiness: Readiness,
    pub metrics: Metrics,
    /// Dumped when the process fails, whatever of.
    pub recorder: Recorder,
}

impl<C> Context<C> {
    /// `/live`, `/ready` and `/metrics`, to serve with [`crate::HealthServer`] or to merge into a router of your own.
    pub fn health_router(&self) -> axum::Router {
        http::health_router(self.readiness.clone(), self.metrics.clone())
    }
}

/// Runs a service and never returns: arguments, configuration, telemetry, signals, watchdog and runtime, then `body`
/// until it ends. The body must watch `shutdown` and end soon after it; the process is gone when the grace is over
/// either way, without running destructors.
pub fn main<C, F, Fut>(about: About, body: F) -> !
where
    C: ServiceConfig,
    F: FnOnce(Context<C>) -> Fut,
    Fut: Future<Output = Outcome>,
{
    let args = ConfigArgs::parse(about);
    let loaded = config::load::<C>(&args).unwrap_or_else(|e| refuse(about, &e.to_string()));
    if args.print_config {
        let printed = std::io::stdout().write_all(loaded.print().as_bytes());
        std::process::exit(if printed.is_ok() { 0 } else { 1 });
    }
    if args.print_memory {
        let needed = loaded.value.memory().unwrap_or_else(|e| refuse(about, &e.to_string()));
        let printed = writeln!(std::io::stdout(), "{needed}");
        std::process::exit(if printed.is_ok() { 0 } else { 1 });
    }
    let common = loaded.value.common().clone();
    let grace = Duration::from_millis(common.shutdown.grace_ms);
    signals::PROCESS.grace_ns.store(u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX), Ordering::Release);
    let log = telemetry::init(&common.log, about.name).unwrap_or_else(|e| refuse(about, &e.to_string()));
    let shutdown = Shutdown::new(&signals::PROCESS);
    let (cell, dir) = (common.cell.id, common.recorder.dir);
    let recorder = Recorder::new(about.name, cell, dir, Instant::now(), clock::unix_millis());
    panics::install(shutdown.clone());
    let started = watchdog::start(&signals::PROCESS)
        .and_then(|()| signals::install(shutdown.clone()))
        .and_then(|()| runtime());
    let outcome = match started {
        Ok(runtime) => run(about, loaded, &shutdown, recorder.clone(), runtime, body),
        Err(e) => Outcome::failed(format!("process set-up: {e}")),
    };
    // Whatever happened before decides as well: a panic in a task makes an orderly end a failure.
    match &outcome {
        Outcome::Stopped => shutdown.begin(ExitCode::Stopped, "done"),
        Outcome::Fatal { error, .. } => {
            error!("{error}");
            shutdown.begin(outcome.code(), error.clone());
        }
    }
    let code = ExitCode::from_code(signals::PROCESS.code().unwrap_or(1));
    if code != ExitCode::Stopped {
        recorder.dump_now(shutdown.reason().unwrap_or("the process failed"));
    }
    info!(code = code.code(), reason = shutdown.reason(), "leaving");
    log.flush(Duration::from_millis(200));
    watchdog::exit_now(code.code())
}

fn run<C, F, Fut>(
    about: About,
    config: Loaded<C>,
    shutdown: &Shutdown,
    recorder: Recorder,
    runtime: Runtime,
    body: F,
) -> Outcome
where
    C: ServiceConfig,
    F: FnOnce(Context<C>) -> Fut,
    Fut: Future<Output = Outcome>,
{
    let metrics = match Metrics::install(about.name) {
        Ok(metrics) => metrics,
        Err(e) => return Outcome::failed(e),
    };
    let context = Context {
        about,
        config,
        shutdown: shutdown.clone(),
        readiness: Readiness::waiting_for("starting"),
        metrics: metrics.clone(),
        recorder,
    };
    let outcome = runtime.block_on(async move {
        tokio::spawn(upkeep(metrics));
        tokio::spawn(count_stalls());
        info!(service = about.name, version = about.version, "starting");
        Box::pin(body(context)).await
    });
    let failed = !matches!(outcome, Outcome::Stopped);
    // The grace for what is left behind starts now, if it has not already.
    shutdown.begin(outcome.code(), if failed { "the service failed" } else { "the service ended" });
    let left = shutdown.deadline().left(Instant::now()).duration();
    runtime.shutdown_timeout(left.saturating_sub(LEAVE).min(Duration::from_secs(1)));
    outcome
}

/// A process that did not run for a while shows it.
async fn count_stalls() {
    let mut tick = tokio::time::interval(STALL_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut detector = StallDetector::new(STALL_TICK, STALL);
    let stalls = metrics::counter!(metric_names::STALLS);
    loop {
        let now = tick.tick().await;
        if let Some(late) = detector.tick(now.into_std()) {
            warn!(ms = late.as_millis(), "this process did not run for a while");
            stalls.increment(1);
        }
    }
}

/// Keeps histograms bounded when nobody reads `/metrics`.
async fn upkeep(metrics: Metrics) {
    let mut tick = tokio::time::interval(METRICS_UPKEEP);
    loop {
        tick.tick().await;
        metrics.upkeep();
    }
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("km-tokio").build()
}

/// Before there is telemetry: say it plainly and leave with the code that no supervisor retries.
fn refuse(about: About, message: &str) -> ! {
    let _ = writeln!(std::io::stderr(), "{}: configuration: {message}", about.name);
    std::process::exit(ExitCode::Config.code())
}
