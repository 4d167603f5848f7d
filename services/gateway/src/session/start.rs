//! From an offer to a running session and its answer.

use std::sync::Arc;

use bus::Subscription;
use contract::media::VideoCodec;
use contract::model::Size;
use contract::params::Parameters;
use contract::session::{Control, ControlReply, CreateSession, SessionCreated};
use contract::{CONTRACT_VERSION, Error, Incarnation, Reason, SessionId, subjects};
use tokio::sync::mpsc;
use tracing::{Instrument, info, info_span};

use super::Shared;
use super::actor::{Actor, Parts};
use super::line::Line;
use super::registry::{COMMAND_BACKLOG, Handle};
use super::resume::ResumeToken;
use crate::app::App;
use crate::media::offer::Offer;
use crate::media::peer::Peer;
use crate::media::rtp::Packetizer;

/// Access units that may wait for the session: about two seconds.
const MEDIA_BACKLOG: usize = 64;
const EVENT_BACKLOG: usize = 128;

/// A validated offer.
pub(crate) struct Request {
    pub(crate) sdp: String,
    pub(crate) offer: Offer,
    pub(crate) parameters: Parameters,
    pub(crate) size: Option<Size>,
    /// The client goes on with a session that it had.
    pub(crate) resume: Option<ResumeToken>,
}

/// What the client gets.
pub(crate) struct Started {
    pub(crate) token: ResumeToken,
    pub(crate) answer: String,
}

/// The running session and its SDP answer.
///
/// # Errors
/// Why there is no session: no place, bad SDP, stage0's refusal, a broker that is away, a wrong resume token. Nothing is left
/// behind.
pub(crate) async fn start(app: &App, request: Request) -> Result<Started, Error> {
    let snapshot = app.cell().now();
    snapshot.check_ready()?;
    let stage0 = snapshot.stage0.as_ref().map(|(instance, _)| *instance);
    if let Some(token) = &request.resume {
        release(app, token).await.inspect_err(refused)?;
    }
    let place = app.sessions().reserve().inspect_err(refused)?;
    let webrtc = &app.config().webrtc;
    // The offer is taken before stage0 is asked, so that one that cannot be used costs no GPU work.
    let peer = Peer::accept(webrtc, app.ports(), &request.offer, &request.sdp).await.inspect_err(refused)?;
    let token = request.resume.clone().unwrap_or_else(ResumeToken::fresh);
    let id = token.session;
    let line = Line::new(app.shared_broker(), id);
    let created = create(app, &token, &line, &request).await;
    let (media, events, created) = match created {
        Ok(created) => created,
        Err(error) => {
            refused(&error);
            let _ = peer.connection.close().await;
            return Err(error);
        }
    };
    let connection = Arc::clone(&peer.connection);
    let SessionCreated { size, incarnation, .. } = created;
    let shared = Arc::new(Shared::new(size, request.parameters));
    let (commands, inbox) = mpsc::channel(COMMAND_BACKLOG);
    let (resume, codec) = (token.digest(), request.offer.codec);
    let handle = Handle {
        id,
        resume: resume.clone(),
        shared: Arc::clone(&shared),
        line: line.clone(),
        connection: Arc::clone(&connection),
        commands,
    };
    let answered = answer(app, id, peer, codec).await;
    let listed = answered.and_then(|answered| app.sessions().insert(Arc::new(handle)).map(|()| answered));
    let (peer, packetizer, answer) = match listed {
        Ok(answered) => answered,
        Err(error) => {
            refused(&error);
            line.queue(Control::Close { reason: error.to_string() });
            let _ = connection.close().await;
            return Err(error);
        }
    };
    info!(session = %id, %incarnation, codec = codec.as_str(), %size, "session started");
    let parts = Parts {
        id,
        resume,
        stage0,
        incarnation,
        codec,
        shared,
        line,
        peer,
        packetizer,
        media,
        events,
        commands: inbox,
        place,
    };
    tokio::spawn(Actor::new(app.clone(), parts).run().instrument(info_span!("session", %id)));
    Ok(Started { token, answer })
}

/// A client that comes back before its old connection is known to be gone takes the session from it.
async fn release(app: &App, token: &ResumeToken) -> Result<(), Error> {
    let Some(running) = app.sessions().find(token.session) else { return Ok(()) };
    if running.resume != token.digest() {
        return Err(Error::new(Reason::BadToken, format!("session {} has another token", token.session)));
    }
    running.let_go().await;
    Ok(())
}

/// The incarnation that the session must have at least. One that runs already says its own.
async fn incarnation(line: &Line, resumes: bool) -> Result<Incarnation, Error> {
    let first = Incarnation(1);
    if !resumes {
        return Ok(first);
    }
    match line.control(&Control::Viewer).await {
        Ok(ControlReply::Watching { incarnation, .. }) => Ok(incarnation.next()),
        Ok(_) => Err(Error::new(Reason::Malformed, "stage0 answered something else")),
        // It ended, or stage0 did: what it left, if anything, is on record.
        Err(error) if matches!(error.reason, Reason::NoSuchSession | Reason::NoResponders) => {
            Ok(first.next())
        }
        Err(error) => Err(error),
    }
}

fn refused(error: &Error) {
    metrics::counter!(runtime::metric_names::SESSIONS_REFUSED, "reason" => error.reason.as_str())
        .increment(1);
}

/// Listens first, then asks stage0, so that nothing is missed.
async fn create(
    app: &App,
    token: &ResumeToken,
    line: &Line,
    request: &Request,
) -> Result<(Subscription, Subscription, SessionCreated), Error> {
    let id = token.session;
    let broker = app.broker();
    let media = broker.media()?.subscribe(&subjects::media_out(id), MEDIA_BACKLOG).await?;
    let events = broker.control()?.subscribe(&subjects::session_event(id), EVENT_BACKLOG).await?;
    let body = CreateSession {
        version: CONTRACT_VERSION,
        session: id,
        incarnation: incarnation(line, request.resume.is_some()).await?,
        resume: token.digest(),
        // A session that goes on keeps its size.
        size: request.size.filter(|_| request.resume.is_none()),
        codec: request.offer.codec,
        bitrate_kbps: app.config().webrtc.start_kbps,
        parameters: request.parameters.clone(),
        update: 0,
    };
    let created = line.create(&app.config().common.cell.id, &body).await;
    if let Err(error) = &created
        && request.resume.is_none()
        && matches!(error.reason, Reason::BudgetSpent | Reason::BrokerUnavailable)
    {
        // stage0 may have created it although its answer did not arrive.
        line.queue(Control::Close { reason: "the answer to create was lost".to_owned() });
    }
    created.map(|created| (media, events, created))
}

async fn answer(
    app: &App,
    id: SessionId,
    mut peer: Peer,
    codec: VideoCodec,
) -> Result<(Peer, Packetizer, String), Error> {
    let answer = peer.answer(app.config().webrtc.public_ip).await?;
    let (ssrc, payload_type) = peer.outgoing().await?;
    tracing::debug!(session = %id, ssrc, payload_type, "answered");
    Ok((peer, Packetizer::new(codec, ssrc, payload_type), answer))
}
