//! A running session as the rest of the process sees it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::{Bus, Endpoint};
use contract::error::{Error, Reason};
use contract::event::SessionEvent;
use contract::ids::SessionSlot;
use contract::media::MediaPart;
use contract::session::{CreateSession, SessionCreated};
use contract::subjects;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::Making;
use super::lives::Life;
use crate::events::Events;
use crate::history::FRAMES_PER_LATENT;
use crate::keeper::Keeper;
use crate::mailbox::{Ending, Mailbox};
use crate::media::Stream;
use crate::output::{MediaSink, Output, OutputControl};
use crate::session::{self, Parts, Shown};

pub(super) struct Live {
    pub(super) asked: CreateSession,
    pub(super) created: SessionCreated,
    pub(super) slot: SessionSlot,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) output: OutputControl,
    pub(super) shown: Shown,
    /// They end with this.
    pub(super) endpoints: Vec<Endpoint>,
}

impl Live {
    /// The answer to the request that made this session, if it is this one and the session is not about to end.
    pub(super) fn made_by(&self, request: &CreateSession) -> Option<SessionCreated> {
        let goes_on = self.mailbox.check(Instant::now()).is_ok();
        (goes_on && self.asked == *request).then(|| self.created.clone())
    }
}

/// Starts the threads of a session. The receiver resolves when the session is over.
pub(super) fn start(
    making: &Making,
    request: CreateSession,
    life: Life,
    created: SessionCreated,
    slot: SessionSlot,
    events: mpsc::Sender<SessionEvent>,
) -> Result<(Live, oneshot::Receiver<()>), Error> {
    let update = request.update.max(life.update());
    let Life { past, tenure, .. } = life;
    let SessionCreated { session, incarnation, size } = created;
    let stream = Stream { session, incarnation, codec: request.codec, size };
    let events = Events::new(events, stream.session, stream.incarnation);
    let shown = Shown::new(stream.session, stream.incarnation);
    let kbps = request.bitrate_kbps.clamp(making.config.min_bitrate_kbps, making.config.max_bitrate_kbps);
    let frames = u64::from(making.model.frames_per_chunk) * FRAMES_PER_LATENT;
    let sink = Published {
        bus: making.media.clone(),
        handle: Handle::current(),
        subject: subjects::media_out(stream.session),
    };
    let frames = usize::try_from(frames).unwrap_or(usize::MAX);
    let encoder = video::encoder(stream.codec, size, kbps).map_err(|e| {
        Error::new(Reason::Internal, "the video encoder cannot be started").detail(e.to_string())
    })?;
    let output = Output::start(encoder, stream, frames, events.clone(), shown.clone(), sink)?;
    let patience = making.config.patience();
    let mailbox = Arc::new(Mailbox::new(request.parameters.clone(), update, patience, Instant::now()));
    let keeper = tenure.map_or_else(Keeper::without_place, |tenure| {
        let mailbox = Arc::clone(&mailbox);
        Keeper::start(making.control.clone(), tenure, move |error| {
            warn!(%error, "the session lives elsewhere");
            mailbox.end(Ending::Superseded);
        })
    });
    let live = Live {
        asked: request,
        created,
        slot,
        mailbox: Arc::clone(&mailbox),
        output: output.control(),
        shown: shown.clone(),
        endpoints: Vec::new(),
    };
    let parts = Parts {
        stream,
        slot,
        model: making.model.clone(),
        studio: making.studio.clone(),
        mesh: making.mesh.clone(),
        mailbox,
        past,
        keeper,
        output,
        events,
        shown,
        threads: making.threads,
        recovery: Duration::from_secs(making.config.recovery_s),
    };
    let (over, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("session".to_owned())
        .spawn(move || {
            session::run(parts);
            let _ = over.send(());
        })
        .map_err(|e| Error::new(Reason::Internal, "no thread for the session").detail(e.to_string()))?;
    Ok((live, ended))
}

/// Media on its way over the broker.
struct Published {
    bus: Bus,
    handle: Handle,
    subject: String,
}

impl MediaSink for Published {
    fn publish(&self, part: MediaPart) -> Result<(), Error> {
        // Waits half a second at most.
        self.handle.block_on(self.bus.publish(&self.subject, &part))
    }
}
