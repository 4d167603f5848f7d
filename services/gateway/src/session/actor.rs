//! The loop of one session: moves media and messages, and ends everything together.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bus::{Inbound, Subscription};
use contract::error::ClientError;
use contract::event::{Event, SessionEvent, SessionState};
use contract::media::{MediaPart, VideoCodec};
use contract::session::{Control, ControlReply};
use contract::{Digest, Error, Incarnation, InstanceId, Reason, SessionId};
use runtime::metric_names;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};
use webrtc::media_stream::track_local::TrackLocal;
use webrtc::peer_connection::RTCPeerConnectionState;

use super::Shared;
use super::channel::{Channel, ChannelEvent};
use super::continuity::{Continuity, Life};
use super::line::Line;
use super::lives::Answer;
use super::messages::ServerMessage;
use super::registry::{Command, Place};
use crate::app::App;
use crate::cell::Snapshot;
use crate::media::bitrate::BitrateController;
use crate::media::peer::{Peer, PeerEvent};
use crate::media::reassembly::Reassembly;
use crate::media::rtp::Packetizer;

/// A client that got an answer has this long to connect, and this long to come back after its network went away.
const CONNECT_WAIT: Duration = Duration::from_secs(20);
const RETURN_WAIT: Duration = Duration::from_secs(6);
const TICK: Duration = Duration::from_millis(250);
/// stage0 pauses a session that nobody watches for 10 s.
const VIEWER_INTERVAL: Duration = Duration::from_secs(3);
/// The driver takes packets at once or is gone.
const WRITE_WAIT: Duration = Duration::from_millis(500);
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Why a session ends; the client is told if there is an error.
pub(super) type Ending = Option<ClientError>;

/// What a session is made of, once its offer is answered.
pub(super) struct Parts {
    pub id: SessionId,
    /// Digest of the session's resume token.
    pub resume: Digest,
    pub stage0: Option<InstanceId>,
    pub incarnation: Incarnation,
    pub codec: VideoCodec,
    pub shared: Arc<Shared>,
    pub line: Line,
    pub peer: Peer,
    pub packetizer: Packetizer,
    pub media: Subscription,
    pub events: Subscription,
    pub commands: mpsc::Receiver<Command>,
    pub place: Place,
}

pub(super) struct Actor {
    pub(super) app: App,
    pub(super) id: SessionId,
    pub(super) resume: Digest,
    pub(super) codec: VideoCodec,
    pub(super) continuity: Continuity,
    /// Of stage0, to what [`Self::continuity`] asked.
    pub(super) answers: JoinSet<Answer>,
    pub(super) shared: Arc<Shared>,
    pub(super) line: Line,
    peer: Peer,
    packetizer: Packetizer,
    reassembly: Reassembly,
    pub(super) bitrate: BitrateController,
    media: Subscription,
    events: Subscription,
    /// Given back before `commands` closes, which is what those who ended the session wait for.
    _place: Place,
    commands: mpsc::Receiver<Command>,
    pub(super) channel: Channel,
    channel_events: mpsc::Receiver<ChannelEvent>,
    pub(super) cell: watch::Receiver<Snapshot>,
    connected: bool,
    /// The client has to be connected by then.
    patience: Option<Instant>,
    pub(super) viewer_told: Option<Instant>,
    lagged: u64,
    /// The session at stage0 goes on, with somebody else.
    pub(super) leave: bool,
}

impl Actor {
    pub(super) fn new(app: App, parts: Parts) -> Self {
        let now = Instant::now();
        let (channel_tx, channel_events) = mpsc::channel(4);
        let config = &app.config().webrtc;
        let bitrate = BitrateController::new(now, config.start_kbps, config.min_kbps, config.max_kbps);
        let patience = Duration::from_secs(app.config().gateway.recovery_s);
        Self {
            channel: Channel::new(Arc::clone(&parts.shared), parts.line.clone(), channel_tx),
            cell: app.cell().subscribe(),
            continuity: Continuity::new(parts.stage0, parts.incarnation, patience),
            answers: JoinSet::new(),
            reassembly: Reassembly::new(parts.incarnation),
            bitrate,
            connected: false,
            patience: Some(now + CONNECT_WAIT),
            viewer_told: None,
            lagged: 0,
            leave: false,
            app,
            id: parts.id,
            resume: parts.resume,
            codec: parts.codec,
            shared: parts.shared,
            line: parts.line,
            peer: parts.peer,
            packetizer: parts.packetizer,
            media: parts.media,
            events: parts.events,
            commands: parts.commands,
            channel_events,
            _place: parts.place,
        }
    }

    pub(super) async fn run(mut self) {
        let ending = self.stream().await;
        self.set_connected(false);
        match &ending {
            Some(error) => info!(reason = error.reason.as_str(), "session ends: {}", error.message),
            None => info!("session ends"),
        }
        self.channel.send(&ServerMessage::stopped(ending.as_ref()));
        let reason = ending.map_or_else(|| "the viewer is gone".to_owned(), |error| error.message);
        let close = Control::Close { reason };
        let (line, leave) = (self.line.clone(), self.leave);
        let close = async { if leave { Ok(ControlReply::Done) } else { line.control(&close).await } };
        let flush = self.channel.flush();
        let (_, closed) = tokio::join!(flush, timeout(CLOSE_WAIT, close));
        if let Ok(Err(error)) = closed
            && error.reason != Reason::NoSuchSession
        {
            debug!(%error, "stage0 did not confirm the end; its own time-out will");
        }
        self.app.sessions().remove(self.id);
        if timeout(CLOSE_WAIT, self.peer.connection.close()).await.is_err() {
            warn!("the peer connection did not close in time");
        }
    }

    async fn stream(&mut self) -> Ending {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let ending = tokio::select! {
                biased;
                command = self.commands.recv() => self.on_command(command),
                event = self.peer.events.recv() => self.on_peer(event),
                Some(ChannelEvent::Closed) = self.channel_events.recv() => Some(None),
                changed = self.cell.changed() => match changed {
                    Ok(()) => self.look(Instant::now()),
                    Err(_) => Some(ended(Reason::Draining, "the gateway is stopping")),
                },
                Some(Ok(answer)) = self.answers.join_next() => self.on_answer(answer),
                event = self.events.next() => match event {
                    Some(inbound) => self.on_event(&inbound),
                    None => Some(ended(Reason::BrokerUnavailable, "the event stream was closed")),
                },
                () = self.peer.feedback.keyframe_wanted() => {
                    if self.reassembly.receiver_asks(Instant::now()) {
                        self.line.queue(Control::Keyframe);
                    }
                    None
                }
                part = self.media.next() => match part {
                    Some(inbound) => self.on_media(&inbound).await,
                    None => Some(ended(Reason::BrokerUnavailable, "the media stream was closed")),
                },
                _ = tick.tick() => self.on_tick(Instant::now()),
            };
            if let Some(ending) = ending {
                return ending;
            }
        }
    }

    fn on_command(&mut self, command: Option<Command>) -> Option<Ending> {
        match command {
            Some(Command::ParametersUpdated(parameters)) => {
                self.channel.send(&ServerMessage::ParametersUpdated { parameters });
                None
            }
            Some(Command::End(error)) => {
                // This gateway goes away, the session need not: its client may come back to it through another one.
                self.leave |= error.as_ref().is_some_and(|error| error.reason == Reason::Draining);
                Some(error.map(|error| error.for_client()))
            }
            Some(Command::LetGo) => Some(self.taken_over()),
            None => Some(None),
        }
    }

    fn on_peer(&mut self, event: Option<PeerEvent>) -> Option<Ending> {
        match event {
            Some(PeerEvent::Channel(channel)) => {
                self.channel.adopt(channel);
                None
            }
            Some(PeerEvent::State(state)) => self.on_state(state),
            None => Some(None),
        }
    }

    fn on_state(&mut self, state: RTCPeerConnectionState) -> Option<Ending> {
        debug!(%state, "peer connection");
        match state {
            RTCPeerConnectionState::Connected => {
                self.set_connected(true);
                self.patience = None;
                self.viewer_told = None;
                if self.reassembly.join(Instant::now()) {
                    self.line.queue(Control::Keyframe);
                }
                None
            }
            RTCPeerConnectionState::Disconnected => {
                self.set_connected(false);
                self.patience = Some(Instant::now() + RETURN_WAIT);
                None
            }
            RTCPeerConnectionState::Failed | RTCPeerConnectionState::Closed => Some(None),
            _ => None,
        }
    }

    fn set_connected(&mut self, connected: bool) {
        if self.connected != connected {
            self.connected = connected;
            metrics::gauge!(metric_names::VIEWERS).increment(if connected { 1.0 } else { -1.0 });
        }
    }

    fn on_event(&mut self, inbound: &Inbound) -> Option<Ending> {
        let message: SessionEvent = match inbound.decode() {
            Ok(message) => message,
            Err(error) => {
                warn!(%error, "an event was not understood");
                return None;
            }
        };
        match self.continuity.life(message.incarnation) {
            Life::Past => return None,
            Life::Present => {}
            Life::Foreign => return Some(self.taken_over()),
        }
        let shown = self.shared.last_chunk().map(|chunk| chunk.chunk_index);
        match &message.event {
            Event::State { state: SessionState::Ended, error } => {
                return Some(error.clone().or_else(|| ended(Reason::SessionEnded, "the session ended")));
            }
            Event::State { state, error } => self.shared.set_state(*state, error.clone()),
            Event::Applied { transition_active: false, .. } => self.shared.transition_ended(),
            Event::Chunk(report) => self.shared.set_chunk(report.clone()),
            Event::Applied { .. } | Event::Error { .. } | Event::Continued { .. } => {}
        }
        self.channel.send(&ServerMessage::of(message.event, shown));
        None
    }

    async fn on_media(&mut self, inbound: &Inbound) -> Option<Ending> {
        let part: MediaPart = match inbound.decode() {
            Ok(part) => part,
            Err(error) => {
                warn!(%error, "a media message was not understood");
                return None;
            }
        };
        let present = part.session == self.id && self.continuity.life(part.incarnation) == Life::Present;
        if !self.connected || !present {
            return None;
        }
        let gaps = self.reassembly.gaps();
        let pushed = self.reassembly.push(Instant::now(), part);
        if self.reassembly.gaps() > gaps {
            metrics::counter!(metric_names::MEDIA_GAPS).increment(1);
            self.shared.gaps.store(self.reassembly.gaps(), Ordering::Relaxed);
        }
        self.shared.frames_dropped.store(self.reassembly.dropped(), Ordering::Relaxed);
        if pushed.ask_keyframe {
            self.line.queue(Control::Keyframe);
        }
        let unit = pushed.unit?;
        let bytes = unit.data.len();
        let packets = match self.packetizer.packetize(Instant::now(), unit) {
            Ok(packets) => packets,
            Err(error) => return Some(Some(error.for_client())),
        };
        for packet in packets {
            match timeout(WRITE_WAIT, self.peer.track.write_rtp(packet)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    debug!(%error, "the connection takes no packets");
                    return None;
                }
                Err(_) => return Some(ended(Reason::Internal, "the media connection is stuck")),
            }
        }
        self.shared.count_unit(bytes);
        metrics::counter!(metric_names::MEDIA_BYTES).increment(bytes as u64);
        None
    }

    fn on_tick(&mut self, now: Instant) -> Option<Ending> {
        if self.patience.is_some_and(|until| now >= until) {
            debug!("the client did not connect, or did not come back");
            return Some(None);
        }
        if let Some(ending) = self.look(now) {
            return Some(ending);
        }
        if self.connected
            && self.viewer_told.is_none_or(|told| now.saturating_duration_since(told) >= VIEWER_INTERVAL)
        {
            self.viewer_told = Some(now);
            self.keep();
        }
        if let Some(estimate) = self.peer.feedback.estimate()
            && let Some(kbps) = self.bitrate.estimate(now, estimate)
        {
            debug!(kbps, estimate, "bitrate follows the receiver");
            self.line.queue(Control::Bitrate { kbps });
        }
        self.shared.kbps.store(u64::from(self.bitrate.current_kbps()), Ordering::Relaxed);
        let lagged = self.media.lagged();
        if lagged > self.lagged {
            debug!(
                dropped = lagged - self.lagged,
                "media messages came faster than the connection took them"
            );
            metrics::counter!(metric_names::FRAMES_DROPPED, "reason" => "gateway_queue")
                .increment(lagged - self.lagged);
            self.lagged = lagged;
        }
        None
    }
}

fn ended(reason: Reason, message: &str) -> Ending {
    Some(Error::new(reason, message).for_client())
}
