//! From an offer to a running session and its answer.

use std::sync::Arc;

use bus::Subscription;
use contract::media::VideoCodec;
use contract::model::Size;
use contract::params::Parameters;
use contract::session::{Control, CreateSession};
use contract::{CONTRACT_VERSION, Error, Incarnation, Reason, SessionId, subjects};
use tokio::sync::mpsc;
use tracing::{Instrument, info, info_span};

use super::Shared;
use super::actor::Actor;
use super::line::Line;
use super::registry::{COMMAND_BACKLOG, Handle};
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
}

/// The running session's id and its SDP answer.
///
/// # Errors
/// Why there is no session: no place, bad SDP, stage0's refusal, a broker that is away. Nothing is left behind.
pub(crate) async fn start(app: &App, request: Request) -> Result<(SessionId, String), Error> {
    let snapshot = app.cell().now();
    snapshot.check_ready()?;
    let stage0 = snapshot.stage0.as_ref().map(|(instance, _)| *instance);
    let place = app.sessions().reserve().inspect_err(refused)?;
    let webrtc = &app.config().webrtc;
    // The offer is taken before stage0 is asked, so that one that cannot be used costs no GPU work.
    let peer = Peer::accept(webrtc, app.ports(), &request.offer, &request.sdp).await.inspect_err(refused)?;
    let id = SessionId::random();
    let line = Line::new(app.shared_broker(), id);
    let created = create(app, id, &line, &request).await;
    let (media, events, size) = match created {
        Ok(created) => created,
        Err(error) => {
            refused(&error);
            let _ = peer.connection.close().await;
            return Err(error);
        }
    };
    let connection = Arc::clone(&peer.connection);
    let answered = answer(app, id, peer, request.offer.codec).await;
    let (peer, packetizer, answer) = match answered {
        Ok(answered) => answered,
        Err(error) => {
            refused(&error);
            line.queue(Control::Close { reason: error.to_string() });
            let _ = connection.close().await;
            return Err(error);
        }
    };
    let shared = Arc::new(Shared::new(size, request.parameters));
    let (commands, inbox) = mpsc::channel(COMMAND_BACKLOG);
    let handle =
        Arc::new(Handle { id, shared: Arc::clone(&shared), line: line.clone(), connection, commands });
    app.sessions().insert(handle);
    info!(session = %id, codec = request.offer.codec.as_str(), %size, "session started");
    let actor =
        Actor::new(app.clone(), id, stage0, shared, line, peer, packetizer, media, events, inbox, place);
    tokio::spawn(actor.run().instrument(info_span!("session", %id)));
    Ok((id, answer))
}

fn refused(error: &Error) {
    metrics::counter!(runtime::metric_names::SESSIONS_REFUSED, "reason" => error.reason.as_str())
        .increment(1);
}

/// Listens first, then asks stage0, so that nothing is missed.
async fn create(
    app: &App,
    id: SessionId,
    line: &Line,
    request: &Request,
) -> Result<(Subscription, Subscription, Size), Error> {
    let broker = app.broker();
    let media = broker.media()?.subscribe(&subjects::media_out(id), MEDIA_BACKLOG).await?;
    let events = broker.control()?.subscribe(&subjects::session_event(id), EVENT_BACKLOG).await?;
    let body = CreateSession {
        version: CONTRACT_VERSION,
        session: id,
        incarnation: Incarnation(1),
        size: request.size,
        codec: request.offer.codec,
        bitrate_kbps: app.config().webrtc.start_kbps,
        parameters: request.parameters.clone(),
    };
    let created = line.create(&app.config().common.cell.id, &body).await;
    if let Err(error) = &created
        && matches!(error.reason, Reason::BudgetSpent | Reason::BrokerUnavailable)
    {
        // stage0 may have created it although its answer did not arrive.
        line.queue(Control::Close { reason: "the answer to create was lost".to_owned() });
    }
    created.map(|created| (media, events, created.size))
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
