//! Builds the worker's parts, runs them, and says how it ended.

use std::collections::HashMap;
use std::future::ready;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::ServiceInfo;
use contract::recording::RecordingRequest;
use contract::{Error, InstanceId, Reason, subjects};
use engine::Engine;
use engine::settings::RankSettings;
use mesh::worker::{Worker, WorkerConfig};
use runtime::{Context, ExitCode, HealthServer, Outcome};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::info;

use crate::board::Board;
use crate::config::WorkerSettings;
use crate::driver::{Driver, DriverState, Ended};
use crate::status::Reporter;

/// Events that wait for the driver.
const QUEUE: usize = 256;
/// The longest that leaving may take after the machine has ended.
const LEAVE: Duration = Duration::from_secs(1);

/// A worker: its rank is what its configuration says.
pub async fn run(context: Context<WorkerSettings>) -> Outcome {
    Box::pin(run_with(context, |rank| Ok((Engine::spawn(rank.engine.clone())?, rank)))).await
}

/// A worker whose caller puts its engine together, and says what it claims to be.
pub async fn run_with<F>(context: Context<WorkerSettings>, build: F) -> Outcome
where
    F: FnOnce(RankSettings) -> Result<(Engine, RankSettings), Error>,
{
    match Box::pin(serve(context, build)).await {
        Ok(ended) => outcome(&ended),
        Err(outcome) => outcome,
    }
}

fn outcome(ended: &Ended) -> Outcome {
    match ended.code {
        mesh::ExitCode::Asked => Outcome::Stopped,
        code => Outcome::fatal(ExitCode::from_code(code.code().into()), &ended.reason),
    }
}

fn misconfigured(error: &Error) -> Outcome {
    Outcome::fatal(ExitCode::Config, error)
}

async fn serve<F>(context: Context<WorkerSettings>, build: F) -> Result<Ended, Outcome>
where
    F: FnOnce(RankSettings) -> Result<(Engine, RankSettings), Error>,
{
    let settings = context.config.value.clone();
    let stop = context.shutdown.token();
    let health = HealthServer::bind(&settings.common.http).await?;
    tokio::spawn(health.serve(context.health_router(), stop.clone()));

    let set_by = context.config.provenance("mesh.tp_plan").to_string();
    let rank = resolve(settings.clone(), set_by).await.map_err(|e| misconfigured(&e))?;
    engine::check_transport(rank.engine.device).map_err(|e| misconfigured(&e))?;
    let (engine, rank) = build(rank).map_err(|e| misconfigured(&e))?;

    context.readiness.set_waiting("broker");
    let timing = settings.mesh.timing();
    let connecting = runtime::broker::connect(&settings.common.nats, "tp-worker", &stop);
    let connected = timeout(timing.orphan_grace, connecting)
        .await
        .map_err(|_| Outcome::orphaned("no broker, so no leader"))?;
    let Some(bus) = connected.map_err(|e| misconfigured(&e))? else {
        return Ok(Ended { code: mesh::ExitCode::Asked, reason: "asked to stop".to_owned() });
    };
    let cell = settings.common.cell.id.clone();
    let service = bus
        .service(ServiceInfo {
            name: "tp-worker".to_owned(),
            version: context.about.version.to_owned(),
            description: "a rank of a mesh: holds one shard and runs in lockstep".to_owned(),
            metadata: HashMap::from([("cell".to_owned(), cell.to_string())]),
        })
        .await?;

    let config = WorkerConfig {
        instance: InstanceId::random(),
        parity: rank.parity,
        session_slots: settings.mesh.session_slots,
        model: rank.model,
        conditionings: settings.mesh.conditionings as usize,
        timing,
    };
    let instance = config.instance;
    info!(%instance, model = config.model.name, "joining a mesh");
    let recorder = context.recorder.clone();
    recorder.identify(instance);
    let of = recorder.clone();
    let recording = move |_, asked: RecordingRequest| ready(Ok(of.recording().newest(asked.max_bytes)));
    let _recorder = service.serve("recorder", &subjects::recorder(&cell, instance), 1, recording).await?;
    let worker = Worker::new(Instant::now(), config);
    let board = Arc::new(Board::new(instance, worker.view()));
    let (tx, events) = mpsc::channel(QUEUE);
    let reporter = Reporter {
        bus: bus.clone(),
        cell: cell.clone(),
        build: context.about.version,
        board: Arc::clone(&board),
        recorder: recorder.clone(),
        readiness: context.readiness.clone(),
    };
    let reporting = tokio::spawn(reporter.run());
    let driver = Driver {
        worker,
        timing,
        bus,
        service: service.clone(),
        cell,
        engine,
        board,
        recorder,
        tx,
        state: DriverState::default(),
    };
    let ended = Box::pin(driver.run(events, stop)).await;
    // On the way out nothing is waited for without a bound.
    reporting.abort();
    let _ = timeout(LEAVE, service.stop()).await;
    Ok(ended)
}

/// Fingerprints of large checkpoints take a while.
async fn resolve(settings: WorkerSettings, set_by: String) -> Result<RankSettings, Error> {
    let resolved = tokio::task::spawn_blocking(move || settings.rank(&set_by));
    resolved
        .await
        .unwrap_or_else(|e| Err(Error::new(Reason::Internal, "reading the weights").detail(e.to_string())))
}
