//! A cell as the gateway sees one: status of a leader and a stage0, session endpoints, media, events.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bus::{Bus, BusConfig, Endpoint, Service, ServiceInfo};
use contract::envelope::MeshPhase;
use contract::error::ClientError;
use contract::event::{ChunkReport, ChunkTimings, Event, SessionEvent, SessionState};
use contract::media::{MAX_PART, MediaPart};
use contract::model::{ModelInfo, Size};
use contract::params::Parameters;
use contract::session::{
    Control, ControlReply, CreateSession, ParametersAccepted, SessionCreated, UpdateParameters,
};
use contract::status::{LinkState, MeshStatus, ProcessStatus, Role, STATUS_INTERVAL_MS, Stage0Status};
use contract::tensor::Dtype;
use contract::{
    CONTRACT_VERSION, CacheEpoch, CellId, ChunkIndex, Digest, Error, Incarnation, InstanceId, MeshEpoch,
    Reason, SessionId, WorldSize, subjects,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::interval;

use super::encoder::TestEncoder;
use super::eventually;
use super::nats::Nats;

const FRAME: Duration = Duration::from_millis(40);

pub(crate) fn model() -> ModelInfo {
    ModelInfo {
        name: "tiny".to_owned(),
        fingerprint: "f".to_owned(),
        sizes: vec![Size { width: 128, height: 128 }, Size { width: 192, height: 128 }],
        dtype: Dtype::F32,
        latent_channels: 16,
        spatial_stride: 8,
        frames_per_chunk: 3,
        context_frames: 3,
        text_len: 512,
        text_dim: 64,
        recompute: true,
        extra_calls: 0,
        default_steps: vec![1000, 750, 500, 250],
        default_attention_bias: 0.3,
        world_sizes: vec![WorldSize::ONE],
        examples: vec!["a red fox in snow".to_owned(), "rain over a harbour".to_owned()],
    }
}

/// What a session was asked, in order.
#[derive(Default)]
pub(crate) struct Session {
    pub(crate) created: Option<CreateSession>,
    pub(crate) controls: Vec<Control>,
    pub(crate) updates: Vec<Parameters>,
    sequence: u64,
    skip: u64,
    keyframe: bool,
}

type Sessions = Arc<Mutex<HashMap<SessionId, Session>>>;

pub(crate) struct Cell {
    bus: Bus,
    sessions: Sessions,
    tasks: Vec<JoinHandle<()>>,
    stage0: InstanceId,
    service: Service,
    _create: Endpoint,
}

impl Cell {
    /// A cell that is ready.
    pub(crate) async fn start(nats: &Nats) -> Self {
        let config = BusConfig { url: nats.url(), ..BusConfig::default() };
        let bus = Bus::connect(&config, "test-cell").await.unwrap();
        let info =
            ServiceInfo { name: "stage0".to_owned(), version: "0.1.0".to_owned(), ..ServiceInfo::default() };
        let service = bus.service(info).await.unwrap();
        let sessions = Sessions::default();
        let create = serve_create(&bus, &service, &sessions).await;
        let stage0 = InstanceId::random();
        let status = tokio::spawn(publish_status(bus.clone(), stage0));
        Self { bus, sessions, tasks: vec![status], stage0, service, _create: create }
    }

    /// Stage0 says that it is there, when it is asked, until the endpoint is dropped. The question is told.
    pub(crate) async fn stage0_is_there(&self) -> (Endpoint, Arc<Notify>) {
        let asked = Arc::new(Notify::new());
        let subject = subjects::presence(&CellId::default(), self.stage0);
        let told = Arc::clone(&asked);
        let here = move |_, (): ()| {
            told.notify_one();
            std::future::ready(Ok(()))
        };
        (self.service.serve("presence", &subject, 1, here).await.unwrap(), asked)
    }

    /// Whatever `read` finds in the session, once there is something.
    pub(crate) async fn seen<T>(&self, id: SessionId, what: &str, read: impl Fn(&Session) -> Option<T>) -> T {
        eventually(what, async || self.sessions.lock().unwrap().get(&id).and_then(&read)).await
    }

    /// What `read` finds now.
    pub(crate) fn now<T>(&self, id: SessionId, read: impl Fn(&Session) -> T) -> Option<T> {
        self.sessions.lock().unwrap().get(&id).map(read)
    }

    pub(crate) fn session_count(&self) -> usize {
        self.sessions.lock().unwrap().len()
    }

    /// The next access units are made but not published.
    pub(crate) fn lose(&self, id: SessionId, units: u64) {
        self.sessions.lock().unwrap().get_mut(&id).unwrap().skip = units;
    }

    pub(crate) async fn tell(&self, id: SessionId, event: Event) {
        let created = |session: &Session| session.created.as_ref().map(|created| created.incarnation);
        let incarnation = self.now(id, created).flatten().unwrap_or(Incarnation(1));
        self.tell_as(id, incarnation, event).await;
    }

    /// As a life of the session that may be history.
    pub(crate) async fn tell_as(&self, id: SessionId, incarnation: Incarnation, event: Event) {
        publish_event(&self.bus, id, incarnation, event).await;
    }

    pub(crate) async fn end(&self, id: SessionId, reason: Reason, message: &str) {
        let error: Option<ClientError> = Some(Error::new(reason, message).for_client());
        self.tell(id, Event::State { state: SessionState::Ended, error }).await;
    }

    /// The session ends, and nobody hears of it.
    pub(crate) fn forget(&self, id: SessionId) {
        self.sessions.lock().unwrap().remove(&id);
    }

    /// As if the processes were killed: nothing more is said or answered.
    pub(crate) fn die(self) {
        drop(self);
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.sessions.lock().unwrap().clear();
    }
}

async fn publish_event(bus: &Bus, id: SessionId, incarnation: Incarnation, event: Event) {
    let message = SessionEvent { session: id, incarnation, event };
    let _ = bus.publish(&subjects::session_event(id), &message).await;
}

async fn publish_status(bus: Bus, of_stage0: InstanceId) {
    let status = |role, instance, mesh, stage0| ProcessStatus {
        version: CONTRACT_VERSION,
        cell: CellId::default(),
        role,
        instance,
        build: "test".to_owned(),
        ready: true,
        waiting_for: None,
        draining: false,
        uptime_ms: 1,
        pid: 1,
        rss_bytes: 0,
        mesh,
        stage0,
    };
    let mesh = MeshStatus {
        rank: None,
        world_size: WorldSize::ONE,
        phase: MeshPhase::Ready,
        epoch: Some(MeshEpoch(3)),
        lease: None,
        lease_holder: None,
        running: None,
        last_call: None,
        running_plan: None,
        last_plan: None,
        last_fault: None,
        chunks: None,
        beats: Vec::new(),
        model: Some(model()),
    };
    let stage0 = Stage0Status {
        model: model(),
        sessions: 0,
        capacity: 4,
        lease: None,
        link: LinkState::Closed,
        running: None,
        last_call: None,
        calls: None,
        call_budget_ms: 10_000,
        last_fault: None,
        last_chunk: None,
        fps: None,
        reports: Vec::new(),
    };
    let messages = [
        status(Role::MeshLeader, InstanceId::random(), Some(mesh), None),
        status(Role::Stage0, of_stage0, None, Some(stage0)),
    ];
    let mut tick = interval(Duration::from_millis(STATUS_INTERVAL_MS));
    loop {
        tick.tick().await;
        for message in &messages {
            let _ = bus.publish(&subjects::cell_status(&CellId::default()), message).await;
        }
    }
}

async fn serve_create(bus: &Bus, service: &Service, sessions: &Sessions) -> Endpoint {
    let (bus, service_of, sessions) = (bus.clone(), service.clone(), Arc::clone(sessions));
    let subject = subjects::session_create(&CellId::default());
    let create = move |_, request: CreateSession| {
        let (bus, service, sessions) = (bus.clone(), service_of.clone(), Arc::clone(&sessions));
        async move {
            let id = request.session;
            let size = request.size.unwrap_or(Size { width: 128, height: 128 });
            model().check_size(size)?;
            let created = SessionCreated { session: id, incarnation: request.incarnation, size };
            let (codec, incarnation) = (request.codec, request.incarnation);
            sessions.lock().unwrap().insert(id, Session { created: Some(request), ..Session::default() });
            let endpoints = serve_session(&service, &sessions, id).await?;
            tokio::spawn(async move {
                stream(&bus, &sessions, id, incarnation, codec, size).await;
                drop(endpoints);
            });
            Ok(created)
        }
    };
    service.serve("create", &subject, 4, create).await.unwrap()
}

async fn serve_session(
    service: &Service,
    sessions: &Sessions,
    id: SessionId,
) -> Result<[Endpoint; 2], Error> {
    let gone = || Error::new(Reason::NoSuchSession, "the session is gone");
    let updated = Arc::clone(sessions);
    let numbers = Arc::new(AtomicU64::new(0));
    let update = move |_, request: UpdateParameters| {
        let update = numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let known =
            updated.lock().unwrap().get_mut(&id).map(|session| session.updates.push(request.parameters));
        std::future::ready(known.map(|()| ParametersAccepted { update }).ok_or_else(gone))
    };
    let controlled = Arc::clone(sessions);
    let control = move |_, control: Control| {
        let mut sessions = controlled.lock().unwrap();
        let reply = sessions.get_mut(&id).ok_or_else(gone).map(|session| {
            session.keyframe |= control == Control::Keyframe;
            session.controls.push(control.clone());
            match control {
                Control::Frame { .. } => {
                    ControlReply::Frame { jpeg: vec![0xff, 0xd8, 0xff], chunk_index: ChunkIndex(0) }
                }
                Control::Viewer => {
                    let incarnation = session.created.as_ref().map_or(Incarnation(1), |c| c.incarnation);
                    ControlReply::Watching { incarnation, state: SessionState::Streaming }
                }
                _ => ControlReply::Done,
            }
        });
        std::future::ready(reply)
    };
    Ok([
        service.serve("params", &subjects::session_params(id), 1, update).await?,
        service.serve("control", &subjects::session_control(id), 1, control).await?,
    ])
}

fn report(chunk_index: ChunkIndex) -> ChunkReport {
    ChunkReport {
        chunk_index,
        cache_epoch: CacheEpoch(1),
        mesh_epoch: MeshEpoch(3),
        frames: 9,
        fps: 25.0,
        dropped_frames: 0,
        latents: Digest::of(&[]),
        timings: ChunkTimings::default(),
    }
}

/// 25 frames a second until the session is closed.
async fn stream(
    bus: &Bus,
    sessions: &Sessions,
    id: SessionId,
    incarnation: Incarnation,
    codec: contract::media::VideoCodec,
    size: Size,
) {
    let mut encoder = TestEncoder::new(codec);
    publish_event(bus, id, incarnation, Event::State { state: SessionState::Streaming, error: None }).await;
    publish_event(bus, id, incarnation, Event::Chunk(Box::new(report(ChunkIndex(0))))).await;
    let mut tick = interval(FRAME);
    loop {
        tick.tick().await;
        let (sequence, skipped, force) = {
            let mut sessions = sessions.lock().unwrap();
            let Some(session) = sessions.get_mut(&id) else { return };
            if session.controls.iter().any(|control| matches!(control, Control::Close { .. })) {
                return;
            }
            let skipped = session.skip > 0;
            session.skip = session.skip.saturating_sub(1);
            session.sequence += 1;
            (session.sequence - 1, skipped, std::mem::take(&mut session.keyframe))
        };
        let (keyframe, data) = encoder.encode(force);
        assert!(data.len() < MAX_PART);
        if skipped {
            continue;
        }
        // In two parts, as a large access unit would be.
        let (head, tail) = data.split_at(data.len() / 2);
        for (part, data) in [head, tail].into_iter().enumerate() {
            let message = MediaPart {
                session: id,
                incarnation,
                sequence,
                part: part as u16,
                parts: 2,
                codec,
                keyframe,
                timestamp: sequence * 3600,
                size,
                cache_epoch: CacheEpoch(1),
                chunk_index: ChunkIndex(sequence / 12),
                frame: (sequence % 12) as u16,
                data: data.to_vec(),
            };
            let _ = bus.publish(&subjects::media_out(id), &message).await;
        }
    }
}
