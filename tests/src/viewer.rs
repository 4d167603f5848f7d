//! A session driven over the broker with the gateway's rights: exact about chunks, without WebRTC in between.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bus::Bus;
use contract::event::{ChunkReport, Event, SessionEvent, SessionState};
use contract::media::{MediaPart, VideoCodec};
use contract::params::Parameters;
use contract::session::{
    Control, ControlReply, CreateSession, ParametersAccepted, SessionCreated, UpdateParameters,
};
use contract::{
    Budget, CONTRACT_VERSION, CellId, ChunkIndex, Deadline, Digest, Error, Incarnation, Reason, SessionId,
    codec, subjects,
};
use serde_json::Value;

use crate::feed::Feed;
use crate::trace::Trace;
use crate::wait;

/// How long a chunk may take on a shared machine before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a session is told that someone is watching.
const WATCHING: Duration = Duration::from_secs(3);
/// A stream that is silent for this long is asked whether it is there, and so many times before it is given up.
const QUIET: Duration = Duration::from_millis(500);
const UNSERVED: u32 = 3;

pub struct Viewer {
    bus: Bus,
    cell: CellId,
    request: CreateSession,
    pub session: SessionId,
    pub created: SessionCreated,
    events: Feed,
    media: Feed,
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
        resume: Digest::of(&[b"a test's token"]),
        size: None,
        codec: VideoCodec::H264,
        bitrate_kbps: 1500,
        parameters: parameters(json),
        update: 0,
    }
}

/// Asks until it is heard: a service that a busy machine kept waiting discards what came meanwhile, and says so.
async fn heard<T, F: Future<Output = Result<T, Error>>>(mut ask: impl FnMut() -> F) -> Result<T, Error> {
    wait::until("somebody who hears", PATIENCE, || {
        let asked = ask();
        async {
            let answer = asked.await;
            let unheard = answer.as_ref().is_err_and(|error| error.reason == Reason::BrokerUnavailable);
            (!unheard).then_some(answer)
        }
    })
    .await
}

fn deadline(budget: Budget) -> Deadline {
    Deadline::after(Instant::now(), budget)
}

impl Viewer {
    /// # Errors
    /// What stage0 answers.
    pub async fn create(bus: &Bus, cell: &CellId, request: CreateSession) -> Result<Self, Error> {
        let events = Feed::start(bus, subjects::session_event(request.session)).await?;
        let media = Feed::start(bus, subjects::media_out(request.session)).await?;
        let subject = subjects::session_create(cell);
        let created = bus.request(&subject, &request, deadline(Budget::from_secs(5))).await?;
        let (bus, cell, session, seen) = (bus.clone(), cell.clone(), request.session, Instant::now());
        Ok(Self { bus, cell, request, session, created, events, media, seen })
    }

    /// Whether nobody serves the session now: its stage0 has died, or has yet to come back to the broker.
    async fn is_unserved(&self) -> bool {
        let answer = self.control(Control::Viewer).await;
        answer.is_err_and(|error| matches!(error.reason, Reason::NoResponders | Reason::NoSuchSession))
    }

    /// Asks for the session again, as a gateway does whose stage0 has died, until it has another life. False if it turns
    /// out to live on.
    ///
    /// # Panics
    /// If neither comes to pass.
    pub async fn recreate(&mut self) -> bool {
        self.request.incarnation = self.request.incarnation.next();
        let subject = subjects::session_create(&self.cell);
        let created = wait::until("the session's next life", PATIENCE, || async {
            let created: Result<SessionCreated, Error> =
                self.bus.request(&subject, &self.request, deadline(Budget::from_secs(5))).await;
            match created {
                Ok(created) => Some(Some(created)),
                Err(error) if error.reason == Reason::SessionExists => Some(None),
                Err(_) => None,
            }
        })
        .await;
        if let Some(created) = created {
            self.created = created;
            return true;
        }
        false
    }

    /// Opens a session with these parameters.
    ///
    /// # Panics
    /// If stage0 refuses.
    pub async fn open(bus: &Bus, cell: &CellId, json: &Value) -> Self {
        heard(|| Self::create(bus, cell, creation(json))).await.expect("a session")
    }

    /// Asks for another life of the session, as a gateway does whose stage0 died.
    ///
    /// # Errors
    /// What stage0 answers.
    pub async fn again(self, cell: &CellId) -> Result<Self, Error> {
        let incarnation = self.created.incarnation.next();
        Self::create(&self.bus, cell, CreateSession { incarnation, ..self.request }).await
    }

    /// # Errors
    /// What stage0 answers.
    pub async fn update(&self, json: &Value) -> Result<u64, Error> {
        let body = UpdateParameters { version: CONTRACT_VERSION, parameters: parameters(json) };
        let subject = subjects::session_params(self.session);
        let accepted: ParametersAccepted =
            heard(|| self.bus.request(&subject, &body, deadline(Budget::from_secs(1)))).await?;
        Ok(accepted.update)
    }

    /// # Errors
    /// What stage0 answers.
    pub async fn control(&self, control: Control) -> Result<ControlReply, Error> {
        let subject = subjects::session_control(self.session);
        self.bus.request(&subject, &control, deadline(Budget::from_secs(1))).await
    }

    /// The next event of this life of the session.
    ///
    /// # Panics
    /// If none comes.
    pub async fn event(&mut self) -> Event {
        self.event_at().await.1
    }

    /// The next event of this life of the session, and when it came. No event is lost if this is dropped.
    ///
    /// # Panics
    /// If none comes.
    pub async fn event_at(&mut self) -> (Instant, Event) {
        let asked = Instant::now();
        loop {
            if self.seen.elapsed() > WATCHING {
                self.seen = Instant::now();
                // A session that ended refuses this; its end is among the events.
                let _ = self.control(Control::Viewer).await;
            }
            match tokio::time::timeout(WATCHING, self.events.next()).await {
                Ok((received, payload)) => {
                    let message: SessionEvent = codec::decode(&payload).expect("an event");
                    if message.incarnation >= self.created.incarnation {
                        return (received, message.event);
                    }
                }
                Err(_) => assert!(asked.elapsed() < PATIENCE, "no event within {PATIENCE:?}"),
            }
        }
    }

    /// What is seen from a fault that `strike` makes happen until frames have flowed for a while, or the session has ended.
    ///
    /// # Panics
    /// If neither comes to pass.
    pub async fn suffer(&mut self, strike: impl Future<Output = ()>) -> Trace {
        let mut trace = Trace::new(Instant::now());
        self.follow(&mut trace, strike).await;
        trace
    }

    /// As [`Viewer::suffer`], of a fault that struck before. A session that nobody serves any more is asked for again.
    ///
    /// # Panics
    /// As [`Viewer::suffer`].
    pub async fn follow(&mut self, trace: &mut Trace, strike: impl Future<Output = ()>) {
        let over = AtomicBool::new(false);
        // The fault goes on beside the watching, whatever the watching waits for.
        let strike = async {
            strike.await;
            over.store(true, Ordering::Release);
        };
        tokio::join!(strike, self.watch(trace, &over));
    }

    async fn watch(&mut self, trace: &mut Trace, over: &AtomicBool) {
        let started = Instant::now();
        let mut unserved = 0;
        while !(trace.ended || over.load(Ordering::Acquire) && trace.has_settled()) {
            tokio::select! {
                (at, event) = self.event_at() => {
                    unserved = 0;
                    trace.note(at, event);
                }
                () = tokio::time::sleep(QUIET) => {
                    unserved = if self.is_unserved().await { unserved + 1 } else { 0 };
                    if unserved == UNSERVED {
                        let noticed = Instant::now();
                        if self.recreate().await {
                            trace.lost(noticed);
                        }
                    }
                }
            }
            assert!(started.elapsed() < 2 * PATIENCE, "not settled within {:?}: {trace:?}", 2 * PATIENCE);
        }
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
        let (_, payload) =
            tokio::time::timeout(PATIENCE, self.media.next()).await.expect("media within 30 s");
        codec::decode(&payload).expect("a media part")
    }

    /// Ends the session and hears that it ended.
    ///
    /// # Panics
    /// If it does not end.
    pub async fn end(mut self) {
        let close = Control::Close { reason: "the test is over".into() };
        heard(|| self.control(close.clone())).await.expect("an open session");
        self.event_where(|event| {
            matches!(event, Event::State { state: SessionState::Ended, .. }).then_some(())
        })
        .await;
    }
}
