//! A session driven over the broker with the gateway's rights: exact about chunks, without WebRTC in between.

use std::time::{Duration, Instant};

use bus::{Bus, Subscription};
use contract::event::{ChunkReport, Event, SessionEvent, SessionState};
use contract::media::{MediaPart, VideoCodec};
use contract::params::Parameters;
use contract::session::{
    Control, ControlReply, CreateSession, ParametersAccepted, SessionCreated, UpdateParameters,
};
use contract::{
    Budget, CONTRACT_VERSION, CellId, ChunkIndex, Deadline, Error, Incarnation, SessionId, subjects,
};
use serde_json::Value;

/// How long a chunk may take on a shared machine before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);
const QUEUE: usize = 4096;
/// How often a session is told that someone is watching.
const WATCHING: Duration = Duration::from_secs(3);

pub struct Viewer {
    bus: Bus,
    pub session: SessionId,
    pub created: SessionCreated,
    events: Subscription,
    media: Subscription,
    seen: Instant,
}

/// # Panics
/// If the parameters are not valid.
#[must_use]
pub fn parameters(json: &Value) -> Parameters {
    Parameters::from_json(json).expect("valid parameters")
}

/// A request to create a session with H.264 at the default size.
#[must_use]
pub fn creation(json: &Value) -> CreateSession {
    CreateSession {
        version: CONTRACT_VERSION,
        session: SessionId::random(),
        incarnation: Incarnation(1),
        size: None,
        codec: VideoCodec::H264,
        bitrate_kbps: 1500,
        parameters: parameters(json),
    }
}

fn deadline(budget: Budget) -> Deadline {
    Deadline::after(Instant::now(), budget)
}

impl Viewer {
    /// # Errors
    /// What stage0 answers.
    pub async fn create(bus: &Bus, cell: &CellId, request: CreateSession) -> Result<Self, Error> {
        let events = bus.subscribe(&subjects::session_event(request.session), QUEUE).await?;
        let media = bus.subscribe(&subjects::media_out(request.session), QUEUE).await?;
        let subject = subjects::session_create(cell);
        let created = bus.request(&subject, &request, deadline(Budget::from_secs(5))).await?;
        let seen = Instant::now();
        Ok(Self { bus: bus.clone(), session: request.session, created, events, media, seen })
    }

    /// Opens a session with these parameters.
    ///
    /// # Panics
    /// If stage0 refuses.
    pub async fn open(bus: &Bus, cell: &CellId, json: &Value) -> Self {
        Self::create(bus, cell, creation(json)).await.expect("a session")
    }

    /// # Errors
    /// What stage0 answers.
    pub async fn update(&self, json: &Value) -> Result<u64, Error> {
        let body = UpdateParameters { version: CONTRACT_VERSION, parameters: parameters(json) };
        let subject = subjects::session_params(self.session);
        let accepted: ParametersAccepted =
            self.bus.request(&subject, &body, deadline(Budget::from_secs(1))).await?;
        Ok(accepted.update)
    }

    /// # Errors
    /// What stage0 answers.
    pub async fn control(&self, control: Control) -> Result<ControlReply, Error> {
        let subject = subjects::session_control(self.session);
        self.bus.request(&subject, &control, deadline(Budget::from_secs(1))).await
    }

    /// The next event of the session.
    ///
    /// # Panics
    /// If none comes.
    pub async fn event(&mut self) -> Event {
        if self.seen.elapsed() > WATCHING {
            self.seen = Instant::now();
            // A session that ended refuses this; its end is among the events.
            let _ = self.control(Control::Viewer).await;
        }
        let inbound = tokio::time::timeout(PATIENCE, self.events.next()).await;
        let inbound = inbound.expect("an event within 30 s").expect("a subscription that lives");
        inbound.decode::<SessionEvent>().expect("an event").event
    }

    /// The next chunk's report; other events are passed over.
    ///
    /// # Panics
    /// If the session ends first.
    pub async fn chunk(&mut self) -> ChunkReport {
        loop {
            match self.event().await {
                Event::Chunk(report) => return *report,
                Event::State { state: SessionState::Ended, error } => panic!("the session ended: {error:?}"),
                _ => {}
            }
        }
    }

    /// Reports up to and including chunk `last` of the current history.
    pub async fn chunks_until(&mut self, last: u64) -> Vec<ChunkReport> {
        let mut reports = Vec::new();
        loop {
            let report = self.chunk().await;
            let done = report.chunk_index >= ChunkIndex(last);
            reports.push(report);
            if done {
                return reports;
            }
        }
    }

    /// The next event that `pick` takes.
    pub async fn event_where<T>(&mut self, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        loop {
            if let Some(value) = pick(&self.event().await) {
                return value;
            }
        }
    }

    /// Like [`Viewer::event_where`], keeping the chunk reports that pass by.
    pub async fn collecting<T>(
        &mut self,
        reports: &mut Vec<ChunkReport>,
        mut pick: impl FnMut(&Event) -> Option<T>,
    ) -> T {
        loop {
            let event = self.event().await;
            if let Event::Chunk(report) = &event {
                reports.push((**report).clone());
            }
            if let Some(value) = pick(&event) {
                return value;
            }
        }
    }

    /// The first chunk of the next history: chunks of the one that a hard cut ended are passed over.
    pub async fn next_history(&mut self) -> ChunkReport {
        loop {
            let report = self.chunk().await;
            if report.chunk_index == ChunkIndex(0) {
                return report;
            }
        }
    }

    /// The next part of an access unit.
    ///
    /// # Panics
    /// If none comes.
    pub async fn media(&mut self) -> MediaPart {
        let inbound = tokio::time::timeout(PATIENCE, self.media.next()).await;
        inbound
            .expect("media within 30 s")
            .expect("a subscription that lives")
            .decode()
            .expect("a media part")
    }

    /// Ends the session and hears that it ended.
    ///
    /// # Panics
    /// If it does not end.
    pub async fn end(mut self) {
        self.control(Control::Close { reason: "the test is over".into() }).await.expect("an open session");
        self.event_where(|event| {
            matches!(event, Event::State { state: SessionState::Ended, .. }).then_some(())
        })
        .await;
    }
}
