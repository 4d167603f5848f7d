//! A session: the actor that owns its state, and the chunk loop. It runs on a thread of its own.
//!
//! While the mesh makes chunk k + 1, chunk k is decoded here. Only what the call for k + 1 needs of chunk k, its *head*,
//! comes before that call.

mod chunk;
mod faults;
mod noise;
mod report;
mod resume;

use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::error::{Error, Reason};
use contract::event::{Event, SessionState};
use contract::ids::SessionSlot;
use contract::model::ModelInfo;
use contract::params::Parameters;
use tch::Tensor;
use tracing::{debug, info, info_span, warn};
use wan::vae::DecoderStream;

use crate::envelope::EmbeddingCargo;
use crate::events::Events;
use crate::history::History;
use crate::keeper::Keeper;
use crate::mailbox::{Ending, Mailbox, News};
use crate::media::Stream;
use crate::mesh_client::{MeshHandle, Outcome};
use crate::output::Output;
use crate::pacer::RateMeter;
use crate::prompt::PromptState;
use crate::settings::Settings;
use crate::studio::Studio;
use chunk::{Arrived, Decoding, Started};
use faults::Faults;
use noise::Noise;
use resume::Beginning;

pub(crate) use report::Shown;
pub(crate) use resume::Past;

/// Everything a session works with.
pub(crate) struct Parts {
    pub stream: Stream,
    pub slot: SessionSlot,
    pub model: ModelInfo,
    pub studio: Studio,
    pub mesh: MeshHandle,
    pub mailbox: Arc<Mailbox>,
    pub past: Past,
    pub keeper: Keeper,
    pub output: Output,
    pub events: Events,
    pub shown: Shown,
    /// Torch threads of the chunk loop.
    pub threads: i32,
    /// How long a session waits for a mesh that is gone.
    pub recovery: Duration,
}

/// Why the chunk loop stops.
enum Stop {
    Ending(Ending),
    Fault(Error),
}

impl From<Ending> for Stop {
    fn from(ending: Ending) -> Self {
        Self::Ending(ending)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Fault(error)
    }
}

/// Runs a session to its end, and tells the end. Blocks.
pub(crate) fn run(parts: Parts) {
    let (events, shown, session) = (parts.events.clone(), parts.shown.clone(), parts.stream.session);
    let span = info_span!("session", %session);
    let _entered = span.enter();
    // libtorch counts its threads per calling thread.
    tch::set_num_threads(parts.threads);
    let mut session = Session::new(parts);
    let Err(stop) = session.stream();
    let Parts { keeper, output, .. } = session.parts;
    // Nothing more is shown once the end is told.
    drop(output);
    let error = match stop {
        Stop::Ending(Ending::Superseded) => return info!("a later life of the session has begun"),
        Stop::Ending(Ending::HandOver(error)) => {
            info!(%error, "the session is left to whoever goes on with it");
            return events.state(SessionState::Recovering, Some(&error));
        }
        Stop::Ending(Ending::Asked(reason)) => {
            info!(reason, "the session ended");
            None
        }
        Stop::Ending(Ending::NobodyWatches) => Some(Error::new(Reason::SessionEnded, "nobody was watching")),
        Stop::Ending(Ending::Process(error)) | Stop::Fault(error) => Some(error),
    };
    if let Some(error) = &error {
        warn!(%error, detail = error.detail, "the session ended");
    }
    shown.state(SessionState::Ended);
    keeper.forget();
    events.state(SessionState::Ended, error.as_ref());
}

struct Session {
    parts: Parts,
    history: History,
    settings: Settings,
    prompts: Option<PromptState>,
    /// Of the chunk before, if there was one.
    conditioning: Option<EmbeddingCargo>,
    noise: Noise,
    decoder: DecoderStream,
    /// Of the first call, where another life of the session went before.
    context: Option<Tensor>,
    rate: RateMeter,
    state: SessionState,
    faults: Faults,
    transition_active: bool,
    /// Under which of the mesh's leases the history was made so far.
    attachment: u64,
    /// Highest update number merged so far.
    update: u64,
}

impl Session {
    fn new(parts: Parts) -> Self {
        Self {
            history: History::new(&parts.model),
            settings: Settings::new(&parts.model),
            prompts: None,
            conditioning: None,
            noise: Noise::new(&parts.model, parts.stream.size),
            decoder: DecoderStream::new(),
            context: None,
            rate: RateMeter::default(),
            state: SessionState::Starting,
            faults: Faults::default(),
            transition_active: false,
            attachment: parts.mesh.view().attachment,
            update: 0,
            parts,
        }
    }

    /// Goes on where the life before left off, if there was one.
    fn begin(&mut self) {
        self.parts.events.state(SessionState::Starting, None);
        let Beginning { history, settings, prompts, decoder, context } = Beginning::of(&self.parts);
        (self.history, self.settings, self.prompts) = (history, settings, prompts);
        (self.decoder, self.context) = (decoder, context);
    }

    /// The chunk loop. Never more than two chunks are in hand: one that the mesh makes, one that is decoded.
    fn stream(&mut self) -> Result<std::convert::Infallible, Stop> {
        self.begin();
        let mut arrived: Option<Arrived> = None;
        loop {
            // With a reset waiting, nobody will ever see the chunk that just came.
            let kept = arrived.take().filter(|_| !self.parts.mailbox.wants_reset());
            let mut decoding = kept.map(|chunk| self.decode_head(chunk)).transpose()?;
            if self.must_wait(Instant::now()) {
                // Without a mesh the picture goes on for as long as there is one; a pause holds it where it is.
                let paused = self.parts.mailbox.should_pause(Instant::now());
                if let Some(decoding) = decoding.as_mut().filter(|_| !paused) {
                    self.decode_rest(decoding, Instant::now())?;
                }
                self.wait_to_start()?;
            }
            self.wait_for_room()?;
            // Only now: with no more than a chunk waiting to be shown, whoever goes on from here skips two at most.
            if let Some(decoding) = &decoding {
                self.keep(decoding);
            }
            let resumed = self.context.take();
            let context = decoding.as_ref().and_then(Decoding::context).or(resumed.as_ref());
            let started = self.start(context)?;
            if let Some(decoding) = decoding.as_mut().filter(|_| !started.is_cut()) {
                self.decode_rest(decoding, started.at())?;
            }
            self.draw_ahead(&started)?;
            arrived = Some(self.complete(started)?);
        }
    }

    /// Frames that are made faster than they are shown would only be dropped.
    fn wait_for_room(&mut self) -> Result<(), Stop> {
        let began = Instant::now();
        while !self.parts.output.wait_for_room(Duration::from_millis(20)) {
            let now = Instant::now();
            self.parts.mailbox.check(now)?;
            if self.parts.mailbox.wants_reset() || self.parts.mailbox.should_pause(now) {
                break;
            }
        }
        self.rate.waited(began.elapsed());
        Ok(())
    }

    fn must_wait(&self, now: Instant) -> bool {
        self.parts.mailbox.should_pause(now) || !self.parts.mesh.is_ready()
    }

    /// Until nobody wants a pause any more and the mesh takes calls.
    fn wait_to_start(&mut self) -> Result<(), Stop> {
        let mut mesh_gone = None;
        loop {
            let now = Instant::now();
            self.parts.mailbox.check(now)?;
            let paused = self.parts.mailbox.should_pause(now);
            self.parts.output.pause(paused);
            if paused {
                mesh_gone = None;
                self.set_state(SessionState::Paused, None);
            } else if !self.parts.mesh.is_ready() {
                let waits_for = self.parts.mesh.waiting_for();
                let error = Error::new(Reason::Recovering, format!("the mesh is not ready: {waits_for}"));
                self.set_state(SessionState::Recovering, Some(&error));
                let since = *mesh_gone.get_or_insert(now);
                if now.saturating_duration_since(since) > self.parts.recovery {
                    return Err(error.into());
                }
            } else {
                self.rate.pause();
                return Ok(());
            }
            self.parts.mailbox.wait(Duration::from_millis(50));
        }
    }

    /// Waits for the chunk, again and again where a call fails and the history can go on.
    fn complete(&mut self, mut started: Started) -> Result<Arrived, Stop> {
        loop {
            match self.outcome()?.result {
                Ok(done) => {
                    self.faults.succeeded();
                    self.history.completed();
                    self.set_state(SessionState::Streaming, None);
                    return Ok(started.arrived(*done));
                }
                Err(error) => self.call_failed(&error)?,
            }
            self.wait_to_start()?;
            if started.is_cut() || self.parts.model.recompute {
                self.resend(&mut started)?;
            } else {
                // The cache cannot be rebuilt: another history begins.
                started = self.start(None)?;
            }
        }
    }

    /// Waits for the answer of the call in flight. Prompts that come meanwhile are encoded: the chunk that they are for need not
    /// wait for that.
    fn outcome(&mut self) -> Result<Outcome, Ending> {
        let until = Instant::now() + self.parts.mesh.patience();
        loop {
            match self.parts.mailbox.news(until)? {
                News::Outcome(outcome) => return Ok(outcome),
                News::Prompts(texts) => {
                    let studio = self.parts.studio.clone();
                    let Some(prompts) = &mut self.prompts else { continue };
                    // What cannot be encoded is told when it is to be applied.
                    if let Err(error) = prompts.prepare(&texts, &mut |text| studio.encode_text(text)) {
                        debug!(%error, "a prompt could not be encoded ahead");
                    }
                }
            }
        }
    }

    fn call_failed(&mut self, error: &Error) -> Result<(), Stop> {
        let verdict = self.faults.failed(error);
        warn!(%error, detail = error.detail, faults = self.faults.in_a_row(), "a call failed");
        metrics::counter!(runtime::metric_names::CHUNKS, "outcome" => error.reason.as_str()).increment(1);
        self.history.interrupted();
        // Of a call that no rank began, nothing is lost: the same chunk is asked for again, and the state tells the rest.
        if !mesh::controller::never_began(error.reason) {
            self.parts.events.error(error);
        }
        Ok(verdict?)
    }

    /// A lease that was lost between two calls took with it what the mesh held of this history: no call had to fail for it.
    fn heed_lease(&mut self) {
        let attachment = self.parts.mesh.view().attachment;
        if std::mem::replace(&mut self.attachment, attachment) != attachment {
            self.history.interrupted();
        }
    }

    fn set_state(&mut self, state: SessionState, error: Option<&Error>) {
        if self.state != state {
            self.state = state;
            self.parts.shown.state(state);
            self.parts.events.state(state, error);
        }
    }

    fn applied(&mut self, started: &Started, update: u64, changed: Parameters, any: bool) {
        let ended = self.transition_active && !started.transition_active();
        self.transition_active = started.transition_active();
        if any || ended {
            self.parts.events.send(Event::Applied {
                update,
                chunk_index: started.position().chunk_index,
                cache_epoch: started.position().cache_epoch,
                changed: Box::new(changed),
                transition_active: self.transition_active,
            });
        }
    }
}
