//! Builds the leader's parts, runs them, and says how it ended.

use std::collections::HashMap;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::{Bus, Endpoint, Service, ServiceInfo, presence};
use contract::recording::RecordingRequest;
use contract::{CellId, Error, InstanceId, MeshEpoch, Reason, subjects};
use engine::settings::RankSettings;
use engine::{Engine, When};
use mesh::leader::{Leader, LeaderConfig};
use runtime::{Context, ExitCode, HealthServer, Outcome};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::info;

use crate::board::Board;
use crate::config::LeaderSettings;
use crate::driver::{Driver, DriverState, Ended, EpochOpener, Event, LEAVE};
use crate::key::{Gate, Keeper, Order};
use crate::link::LinkDesk;
use crate::status::Reporter;
use crate::{endpoints, liveness};

/// Events that wait for the driver.
const QUEUE: usize = 256;
/// Enough to fill the KV window and pass one eviction.
const WARM_UP_CHUNKS: u32 = 3;

pub(crate) async fn run(context: Context<LeaderSettings>) -> Outcome {
    match Box::pin(serve(context)).await {
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

async fn serve(context: Context<LeaderSettings>) -> Result<Ended, Outcome> {
    let settings = context.config.value.clone();
    let stop = context.shutdown.token();
    let health = HealthServer::bind(&settings.common.http).await?;
    tokio::spawn(health.serve(context.health_router(), stop.clone()));

    let set_by = context.config.provenance("mesh.tp_plan").to_string();
    let rank = resolve(settings.clone(), set_by).await.map_err(|e| misconfigured(&e))?;
    let world_size = settings.mesh.world_size().map_err(|e| misconfigured(&e))?;
    if world_size.get() > 1 {
        engine::check_transport(rank.engine.device).map_err(|e| misconfigured(&e))?;
    }
    let tp_plan = settings.mesh.plan().map_err(|e| misconfigured(&e))?;
    let engine = Engine::spawn(rank.engine.clone()).map_err(|e| misconfigured(&e))?;

    context.readiness.set_waiting("broker");
    let connected = runtime::broker::connect(&settings.common.nats, "mesh-leader", &stop).await;
    let Some(bus) = connected.map_err(|e| misconfigured(&e))? else {
        return Ok(Ended { code: mesh::ExitCode::Asked, reason: "asked to stop".to_owned() });
    };
    let cell = settings.common.cell.id.clone();
    let service = register(&bus, &cell, context.about.version).await?;

    let config = LeaderConfig {
        instance: InstanceId::random(),
        parity: rank.parity,
        tp_plan,
        world_size,
        session_slots: settings.mesh.session_slots,
        model: rank.model.clone(),
        conditionings: settings.mesh.conditionings as usize,
        warm_up_chunks: WARM_UP_CHUNKS,
        timing: settings.mesh.timing(),
    };
    let (instance, timing) = (config.instance, config.timing);
    let recorder = context.recorder.clone();
    recorder.identify(instance);
    info!(%instance, %world_size, model = rank.model.name, "forming a mesh");
    let now = Instant::now();
    let (leader, first) = Leader::new(now, config);
    let board = Arc::new(Board::new(instance, leader.view(now)));
    let (tx, events) = mpsc::channel(QUEUE);
    let liveness = liveness::start(&settings.mesh.liveness_bind, Arc::clone(&board), tx.clone())
        .map_err(|e| misconfigured(&e))?;

    let gate = Gate::default();
    let (key, orders) = mpsc::channel(4);
    let (lost, why) = mpsc::channel(1);
    let ttl = Duration::from_millis(settings.mesh.leader_ttl_ms);
    let keeper = Keeper { bus: bus.clone(), cell: cell.clone(), instance, ttl, gate: gate.clone(), lost };
    tokio::spawn(keeper.keep(orders));
    tokio::spawn(tell_lost(why, tx.clone()));
    let _join = endpoints::serve_join(&service, &cell, tx.clone()).await?;
    let of = recorder.clone();
    let recording = move |_, asked: RecordingRequest| ready(Ok(of.recording().newest(asked.max_bytes)));
    let _recorder = service.serve("recorder", &subjects::recorder(&cell, instance), 1, recording).await?;
    // Before the driver takes the key: a holder that does not say that it is there loses it.
    let _presence = presence::serve(&service, &cell, instance).await?;
    let reporter = Reporter {
        bus: bus.clone(),
        cell: cell.clone(),
        build: context.about.version,
        world_size,
        model: rank.model.clone(),
        board: Arc::clone(&board),
        recorder: recorder.clone(),
        readiness: context.readiness.clone(),
    };
    let reporting = tokio::spawn(reporter.run());

    let opener = Calls { service: service.clone(), cell: cell.clone(), gate, events: tx.clone() };
    let driver = Driver {
        leader,
        timing,
        bus,
        links: Arc::new(LinkDesk::new(&settings.mesh, rank.engine.device, &cell, &rank.model)),
        cell,
        world_size,
        model: rank.model,
        liveness,
        engine,
        board,
        recorder,
        key: key.clone(),
        open_epoch: Arc::new(opener),
        tx,
        state: DriverState::default(),
    };
    let ended = Box::pin(driver.run(first, events, stop)).await;
    // On the way out nothing is waited for without a bound: answers on their way, then the key.
    reporting.abort();
    let _ = timeout(LEAVE, service.stop()).await;
    let (released, done) = oneshot::channel();
    if key.try_send(Order::Release(released)).is_ok() {
        let _ = timeout(LEAVE, done).await;
    }
    Ok(ended)
}

/// Fingerprints of large checkpoints take a while.
async fn resolve(settings: LeaderSettings, set_by: String) -> Result<RankSettings, Error> {
    let resolved = tokio::task::spawn_blocking(move || {
        // What it needs is said when it is loaded.
        settings.rank(&set_by, When::BesideOthers).map(|(rank, _)| rank)
    });
    resolved
        .await
        .unwrap_or_else(|e| Err(Error::new(Reason::Internal, "reading the weights").detail(e.to_string())))
}

async fn register(bus: &Bus, cell: &CellId, version: &str) -> Result<Service, Outcome> {
    let info = ServiceInfo {
        name: "mesh-leader".to_owned(),
        version: version.to_owned(),
        description: "rank 0 of a mesh: admits calls and leads every run".to_owned(),
        metadata: HashMap::from([("cell".to_owned(), cell.to_string())]),
    };
    Ok(bus.service(info).await?)
}

async fn tell_lost(mut why: mpsc::Receiver<String>, tx: mpsc::Sender<Event>) {
    if let Some(reason) = why.recv().await {
        let _ = tx.send(Event::Machine(mesh::leader::Input::EpochLost { reason })).await;
    }
}

struct Calls {
    service: Service,
    cell: CellId,
    gate: Gate,
    events: mpsc::Sender<Event>,
}

impl EpochOpener for Calls {
    fn open(&self, epoch: MeshEpoch) -> Pin<Box<dyn Future<Output = Result<Endpoint, Error>> + Send>> {
        let (service, cell) = (self.service.clone(), self.cell.clone());
        let (gate, events) = (self.gate.clone(), self.events.clone());
        Box::pin(async move { endpoints::serve_calls(&service, &cell, epoch, gate, events).await })
    }
}
