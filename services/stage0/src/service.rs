//! From configuration to a running stage 0, and back down.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bus::{Bus, BusConfig, ServiceInfo, presence};
use contract::error::{Error, Reason};
use contract::ids::InstanceId;
use contract::session::CreateSession;
use contract::subjects;
use runtime::{Context, ExitCode, HealthServer, Outcome};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::call_budget::CallBudget;
use crate::cell::Cell;
use crate::config::Config;
use crate::heartbeat::Heartbeat;
use crate::models::{self, Loaded};
use crate::ops::Operations;
use crate::sessions::{Making, Sessions};
use crate::status::Portrait;
use crate::{events, mesh_client};

/// Sessions that may be created at a time.
const CREATING: usize = 4;
/// On the way out: for sessions to say goodbye, for their events to be sent, for the mesh to take the lease back.
const FAREWELL: Duration = Duration::from_millis(2_500);
const EVENTS: Duration = Duration::from_millis(500);
const BYE: Duration = Duration::from_millis(500);

/// The body of the process.
pub(crate) async fn run(context: Context<Config>) -> Outcome {
    let outcome = tokio::select! {
        outcome = serve(&context) => outcome,
        // Still starting: there is nothing to take down.
        () = context.shutdown.requested() => Ok(None),
    };
    match outcome {
        Ok(None) => Outcome::Stopped,
        Ok(Some(running)) => {
            context.shutdown.requested().await;
            running.stop(&context).await;
            Outcome::Stopped
        }
        Err(outcome) => outcome,
    }
}

struct Running {
    sessions: Sessions,
    publisher: tokio::task::JoinHandle<()>,
    _endpoints: Vec<bus::Endpoint>,
}

async fn serve(context: &Context<Config>) -> Result<Option<Running>, Outcome> {
    let config = &context.config.value;
    let common = &config.common;
    let (shutdown, readiness) = (&context.shutdown, &context.readiness);
    let started = Instant::now();
    let http = HealthServer::bind(&common.http).await.map_err(Outcome::from)?;
    tokio::spawn(http.serve(context.health_router(), shutdown.token()));

    readiness.set_waiting("loading");
    let (model, device, sessions) = (config.model.clone(), config.device.clone(), config.stage0.max_sessions);
    let loading = tokio::task::spawn_blocking(move || models::load(&model, &device, sessions));
    let Loaded { model, studio, device } = loading.await.map_err(Outcome::failed)?.map_err(Outcome::from)?;
    info!(model = model.name, fingerprint = model.fingerprint, "model loaded");

    readiness.set_waiting("broker");
    let Some((bus, media)) = connect(&common.nats, &shutdown.token()).await? else { return Ok(None) };
    let instance = InstanceId::random();
    let cell_id = common.cell.id.clone();
    let cell = Cell::listen(&bus, &cell_id, shutdown.token()).await.map_err(Outcome::from)?;
    let recorder = context.recorder.clone();
    recorder.identify(instance);
    let settings = mesh_client::Settings {
        cell_id: cell_id.clone(),
        instance,
        model: model.clone(),
        device,
        budget: CallBudget::new(config.stage0.call_bounds()),
        sessions: config.stage0.max_sessions,
        recorder: recorder.clone(),
    };
    let service = bus
        .service(ServiceInfo {
            name: context.about.name.to_owned(),
            version: context.about.version.to_owned(),
            description: context.about.about.to_owned(),
            metadata: HashMap::from([("cell".to_owned(), cell_id.to_string())]),
        })
        .await
        .map_err(Outcome::from)?;
    // Before the lease is asked for: a holder that does not say that it is there loses it.
    let presence = presence::serve(&service, &cell_id, instance).await.map_err(Outcome::from)?;
    let mesh = mesh_client::start(settings, bus.clone(), cell.clone(), shutdown.clone());

    let (events_in, queue) = events::queue();
    let publisher = tokio::spawn(events::publish(bus.clone(), queue));
    let making = Making {
        config: config.stage0.clone(),
        threads: i32::try_from(config.device.threads).unwrap_or(1),
        model,
        studio,
        mesh,
        control: bus.clone(),
        media,
        service: service.clone(),
    };
    let sessions = Sessions::new(making, events_in);
    tokio::spawn(shutdown.token().run_until_cancelled_owned(sessions.clone().follow(bus.state())));
    let of = sessions.clone();
    let create = move |_, request: CreateSession| {
        let sessions = of.clone();
        async move { sessions.create(request).await }
    };
    let subject = subjects::session_create(&cell_id);
    let create = service.serve("session-create", &subject, CREATING, create).await.map_err(Outcome::from)?;
    let portrait = Portrait {
        bus,
        cell_id,
        instance,
        build: context.about.version,
        started,
        sessions: sessions.clone(),
        recorder,
    };
    let grace = Duration::from_millis(common.shutdown.grace_ms);
    let operations = Operations::new(portrait.clone(), cell, shutdown.clone(), grace);
    let mut endpoints = operations.serve(&service).await.map_err(Outcome::from)?;
    endpoints.extend([create, presence]);
    let heartbeat = Heartbeat { portrait, readiness: readiness.clone(), shutdown: shutdown.clone() };
    tokio::spawn(heartbeat.run());
    Ok(Some(Running { sessions, publisher, _endpoints: endpoints }))
}

impl Running {
    async fn stop(self, context: &Context<Config>) {
        let why = context.shutdown.reason().unwrap_or("asked to");
        context.readiness.set_waiting("stopping");
        let ended = self.sessions.hand_over(&Error::new(Reason::Recovering, format!("stage0 stops: {why}")));
        info!(sessions = ended.len(), why, "stopping");
        self.sessions.none_left(FAREWELL).await;
        // The last sender of events went with the last session.
        if tokio::time::timeout(EVENTS, self.publisher).await.is_err() {
            warn!("not all events were sent");
        }
        // Comes after the events on the same connection: its answer means that the broker has those too.
        self.sessions.mesh().bye(BYE).await;
    }
}

/// Control and media, each with a connection of its own; `None` when asked to stop before both stand.
async fn connect(nats: &BusConfig, stop: &CancellationToken) -> Result<Option<(Bus, Bus)>, Outcome> {
    let one = async |name| {
        let connected = runtime::broker::connect(nats, name, stop).await;
        connected.map_err(|error| Outcome::fatal(ExitCode::Config, error))
    };
    let Some(control) = one("stage0").await? else { return Ok(None) };
    Ok(one("stage0-media").await?.map(|media| (control, media)))
}
