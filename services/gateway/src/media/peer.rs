//! One peer connection: built for exactly the codec the offer was inspected for.

use std::sync::Arc;
use std::time::Duration;

use contract::media::VideoCodec;
use contract::{Error, Reason};
use rtc::ice::mdns::MulticastDnsMode;
use rtc::interceptor::{
    CongestionControlBuilder, NackResponderBuilder, SenderReportBuilder, Slot, TwccSenderBuilder,
};
use rtc::media_stream::MediaStreamTrack;
use rtc::peer_connection::configuration::media_engine::MediaEngine;
use rtc::peer_connection::configuration::setting_engine::{SettingEngine, SettingEngineBuilder};
use rtc::peer_connection::sdp::RTCSessionDescription;
use rtc::peer_connection::transport::{RTCIceCandidateInit, RTCIceServer};
use rtc::rtp_transceiver::RTCRtpTransceiverDirection;
use rtc::rtp_transceiver::rtp_sender::{
    RTCPFeedback, RTCRtpCodec, RTCRtpCodecParameters, RTCRtpCodingParameters, RTCRtpEncodingParameters,
    RTCRtpHeaderExtensionCapability, RtpCodecKind,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use webrtc::data_channel::DataChannel;
use webrtc::media_stream::Track;
use webrtc::media_stream::track_local::TrackLocal;
use webrtc::media_stream::track_local::static_rtp::TrackLocalStaticRTP;
use webrtc::media_stream::track_remote::TrackRemote;
use webrtc::peer_connection::{
    PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCConfigurationBuilder,
    RTCIceGatheringState, RTCPeerConnectionState, Registry,
};
use webrtc::rtp_transceiver::RtpSender;

use super::bitrate::BitrateController;
use super::feedback::{Feedback, Listener, PublishedEstimate};
use super::offer::{self, CodecLine, Offer};
use super::ports::{Port, Ports};
use crate::config::WebRtcConfig;

/// STUN may be away; the host candidates are enough to answer.
const GATHER_WAIT: Duration = Duration::from_secs(5);
/// A peer that is silent this long is reported as disconnected, and as failed this long after that.
const DISCONNECTED_AFTER: Duration = Duration::from_secs(4);
const FAILED_AFTER: Duration = Duration::from_secs(8);
/// Binding a port of the configured range may fail because someone else has it.
const PORT_ATTEMPTS: usize = 8;
const EVENT_BACKLOG: usize = 32;
/// Outstanding bytes of the data channel before a send waits.
const CHANNEL_BUFFER: usize = 256 * 1024;

/// What happens on a connection.
pub(crate) enum PeerEvent {
    State(RTCPeerConnectionState),
    Channel(Arc<dyn DataChannel>),
}

/// A connection that has taken the offer and not yet answered.
pub(crate) struct Peer {
    pub(crate) connection: Arc<dyn PeerConnection>,
    pub(crate) track: Arc<TrackLocalStaticRTP>,
    pub(crate) events: mpsc::Receiver<PeerEvent>,
    pub(crate) feedback: Arc<Feedback>,
    sender: Arc<dyn RtpSender>,
    gathered: oneshot::Receiver<()>,
    _port: Port,
}

impl Peer {
    /// # Errors
    /// `bad_sdp` if the offer cannot be used, `too_many_sessions` without a free port, `internal` if no socket opens.
    pub(crate) async fn accept(
        config: &WebRtcConfig,
        ports: &Ports,
        offer: &Offer,
        sdp: &str,
    ) -> Result<Self, Error> {
        let mut last = None;
        let mut tried = Vec::new();
        for _ in 0..PORT_ATTEMPTS {
            let port = ports.take()?;
            match Self::build(config, port, offer).await {
                Ok(peer) => {
                    return match peer.take_offer(sdp).await {
                        Ok(()) => Ok(peer),
                        Err(error) => {
                            let _ = peer.connection.close().await;
                            Err(error)
                        }
                    };
                }
                // The port stays taken while others are tried, so that the next attempt gets another one.
                Err((error, port)) => {
                    last = Some(error);
                    tried.push(port);
                }
            }
        }
        let detail = last.map(|e| e.to_string()).unwrap_or_default();
        Err(Error::new(Reason::Internal, "no media socket could be opened").detail(detail))
    }

    async fn build(
        config: &WebRtcConfig,
        port: Port,
        offer: &Offer,
    ) -> Result<Self, (webrtc::error::Error, Port)> {
        let feedback = Arc::new(Feedback::default());
        let (event_tx, events) = mpsc::channel(EVENT_BACKLOG);
        let (gathered_tx, gathered) = oneshot::channel();
        let handler = Handler { events: event_tx, gathered: std::sync::Mutex::new(Some(gathered_tx)) };
        let address = std::net::SocketAddr::new(config.bind, port.number()).to_string();
        let built = async {
            let (engine, registry) = media(config, offer, &feedback)?;
            let building = PeerConnectionBuilder::new()
                .with_configuration(RTCConfigurationBuilder::new().with_ice_servers(stun(config)).build())
                .with_media_engine(engine)
                .with_setting_engine(settings())
                .with_interceptor_registry(registry)
                .with_handler(Arc::new(handler))
                .with_udp_addrs(vec![address])
                .with_data_channel_send_buffer_limit(CHANNEL_BUFFER)
                .build();
            let connection: Arc<dyn PeerConnection> = Arc::new(Box::pin(building).await?);
            let track = Arc::new(TrackLocalStaticRTP::new(stream(offer)));
            let sender = connection.add_track(Arc::clone(&track) as Arc<dyn TrackLocal>).await?;
            Ok((connection, track, sender))
        };
        match built.await {
            Ok((connection, track, sender)) => {
                Ok(Self { connection, track, events, feedback, sender, gathered, _port: port })
            }
            Err(error) => Err((error, port)),
        }
    }

    async fn take_offer(&self, sdp: &str) -> Result<(), Error> {
        let bad = |e: webrtc::error::Error| {
            Error::new(Reason::BadSdp, "the offer cannot be used").detail(e.to_string())
        };
        let offer = RTCSessionDescription::offer(sdp.to_owned()).map_err(bad)?;
        self.connection.set_remote_description(offer).await.map_err(bad)?;
        // Only the first video section that receives carries the stream; whatever else is offered stays silent.
        let ours = self.sender.id();
        for transceiver in self.connection.get_transceivers().await {
            let sender = transceiver.sender().await.map_err(bad)?;
            if sender.is_none_or(|sender| sender.id() != ours) {
                transceiver.set_direction(RTCRtpTransceiverDirection::Inactive).await.map_err(bad)?;
            }
        }
        Ok(())
    }

    /// The answer with every candidate in it.
    ///
    /// # Errors
    /// `bad_sdp` if no answer fits the offer.
    pub(crate) async fn answer(&mut self, public_ip: Option<std::net::IpAddr>) -> Result<String, Error> {
        let bad = |e: webrtc::error::Error| {
            Error::new(Reason::BadSdp, "no answer fits the offer").detail(e.to_string())
        };
        let answer = self.connection.create_answer(None).await.map_err(bad)?;
        self.connection.set_local_description(answer).await.map_err(bad)?;
        if timeout(GATHER_WAIT, &mut self.gathered).await.is_err() {
            tracing::warn!(wait = ?GATHER_WAIT, "candidates were not all gathered in time; answering with those there are");
        }
        let answer =
            self.connection.local_description().await.ok_or_else(|| {
                Error::new(Reason::Internal, "the connection closed before it could answer")
            })?;
        Ok(public_ip.map_or_else(|| answer.sdp.clone(), |ip| offer::announce(&answer.sdp, ip)))
    }

    /// SSRC and payload type that outgoing packets must carry.
    ///
    /// # Errors
    /// `bad_sdp` if negotiation agreed on nothing.
    pub(crate) async fn outgoing(&self) -> Result<(u32, u8), Error> {
        let nothing = || Error::new(Reason::BadSdp, "the offer leaves nothing to send");
        let parameters = self.sender.get_parameters().await.map_err(|e| nothing().detail(e.to_string()))?;
        let codec = parameters.rtp_parameters.codecs.first().ok_or_else(nothing)?;
        let ssrc = self.track.ssrcs().await.first().copied().ok_or_else(nothing)?;
        Ok((ssrc, codec.payload_type))
    }
}

/// Adds a client's trickled candidate. An empty one only says that there are no more.
///
/// # Errors
/// `no_such_resource` (existing clients expect 404) for a candidate that cannot be parsed.
pub(crate) async fn add_candidate(
    connection: &dyn PeerConnection,
    candidate: &str,
    mid: Option<String>,
    index: Option<u16>,
) -> Result<(), Error> {
    // A name that only the client's own network can resolve; the connectivity checks reveal the address behind it.
    if candidate.is_empty()
        || candidate.split_whitespace().nth(4).is_some_and(|host| host.ends_with(".local"))
    {
        return Ok(());
    }
    let init = RTCIceCandidateInit {
        candidate: candidate.to_owned(),
        sdp_mid: mid,
        sdp_mline_index: index,
        ..RTCIceCandidateInit::default()
    };
    connection.add_ice_candidate(init).await.map_err(|e| {
        Error::new(Reason::NoSuchResource, format!("Invalid ICE candidate: {candidate:?}"))
            .detail(e.to_string())
    })
}

fn settings() -> SettingEngine {
    SettingEngineBuilder::new()
        // Building fails where no interface can multicast; browsers' mDNS candidates connect without it.
        .with_multicast_dns_mode(MulticastDnsMode::Disabled)
        .with_include_loopback_candidate(true)
        .with_ice_timeouts(Some(DISCONNECTED_AFTER), Some(FAILED_AFTER), Some(Duration::from_secs(1)))
        .build()
}

fn stun(config: &WebRtcConfig) -> Vec<RTCIceServer> {
    let urls = config.stun_urls.clone();
    if urls.is_empty() { Vec::new() } else { vec![RTCIceServer { urls, ..RTCIceServer::default() }] }
}

fn mime_type(codec: VideoCodec) -> &'static str {
    match codec {
        VideoCodec::H264 => "video/H264",
        VideoCodec::Vp8 => "video/VP8",
    }
}

fn rtp_codec(mime_type: &str, line: &CodecLine, feedback: Vec<RTCPFeedback>) -> RTCRtpCodec {
    RTCRtpCodec {
        mime_type: mime_type.to_owned(),
        clock_rate: line.clock_rate,
        channels: line.channels,
        sdp_fmtp_line: line.fmtp.clone(),
        rtcp_feedback: feedback,
    }
}

fn feedback(typ: &str, parameter: &str) -> RTCPFeedback {
    RTCPFeedback { typ: typ.to_owned(), parameter: parameter.to_owned() }
}

/// Only the chosen codec (and its retransmissions), and only what serves a stream that is sent: no receiver-side
/// interceptors, since what clients send is not used, and no pacer, since it queues for seconds when feedback is missing.
fn media(
    config: &WebRtcConfig,
    offer: &Offer,
    shared: &Arc<Feedback>,
) -> Result<(MediaEngine, Registry), webrtc::error::Error> {
    let mut engine = MediaEngine::default();
    let bandwidth = if offer.transport_cc { "transport-cc" } else { "goog-remb" };
    let video_feedback =
        vec![feedback("nack", ""), feedback("nack", "pli"), feedback("ccm", "fir"), feedback(bandwidth, "")];
    let video = rtp_codec(mime_type(offer.codec), &offer.video, video_feedback);
    engine.register_codec(
        RTCRtpCodecParameters { rtp_codec: video, payload_type: offer.video.payload_type },
        RtpCodecKind::Video,
    )?;
    if let Some(payload_type) = offer.rtx {
        let fmtp = format!("apt={}", offer.video.payload_type);
        let line = CodecLine { fmtp, clock_rate: 90_000, ..CodecLine::default() };
        let rtp_codec = rtp_codec("video/rtx", &line, Vec::new());
        engine.register_codec(RTCRtpCodecParameters { rtp_codec, payload_type }, RtpCodecKind::Video)?;
    }
    if let Some(audio) = &offer.audio {
        let rtp_codec = rtp_codec(&format!("audio/{}", audio.name), audio, Vec::new());
        let parameters = RTCRtpCodecParameters { rtp_codec, payload_type: audio.payload_type };
        engine.register_codec(parameters, RtpCodecKind::Audio)?;
    }
    let mid = RTCRtpHeaderExtensionCapability { uri: rtc::sdp::extmap::SDES_MID_URI.to_owned() };
    engine.register_header_extension(mid, RtpCodecKind::Video, None)?;
    let mut registry = Registry::new()
        .with(Slot::from(500), Listener::new(Arc::clone(shared)))
        .with(Slot::NackResponder, NackResponderBuilder::new().build())
        .with(Slot::SenderReport, SenderReportBuilder::new().build());
    if offer.transport_cc {
        let uri = rtc::sdp::extmap::TRANSPORT_CC_URI.to_owned();
        engine.register_header_extension(
            RTCRtpHeaderExtensionCapability { uri },
            RtpCodecKind::Video,
            None,
        )?;
        let [start, low, high] =
            [config.start_kbps, config.min_kbps, config.max_kbps].map(BitrateController::estimate_for);
        let estimator = PublishedEstimate::new(Arc::clone(shared), start, low, high);
        registry = registry
            .with(Slot::CongestionControl, CongestionControlBuilder::new(estimator).build())
            .with(Slot::TwccSender, TwccSenderBuilder::new().build());
    }
    Ok((engine, registry))
}

fn stream(offer: &Offer) -> MediaStreamTrack {
    let coding = RTCRtpEncodingParameters {
        rtp_coding_parameters: RTCRtpCodingParameters { ssrc: Some(rand::random()), ..Default::default() },
        codec: rtp_codec(mime_type(offer.codec), &offer.video, Vec::new()),
        ..Default::default()
    };
    MediaStreamTrack::new(
        "kinemesh".to_owned(),
        "video".to_owned(),
        "generated video".to_owned(),
        RtpCodecKind::Video,
        vec![coding],
    )
}

struct Handler {
    events: mpsc::Sender<PeerEvent>,
    gathered: std::sync::Mutex<Option<oneshot::Sender<()>>>,
}

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_ice_gathering_state_change(&self, state: RTCIceGatheringState) {
        if state == RTCIceGatheringState::Complete
            && let Some(gathered) =
                self.gathered.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
        {
            let _ = gathered.send(());
        }
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        // The session reads these at once; a full queue means that it is gone.
        let _ = self.events.try_send(PeerEvent::State(state));
    }

    async fn on_data_channel(&self, channel: Arc<dyn DataChannel>) {
        let _ = self.events.try_send(PeerEvent::Channel(channel));
    }

    async fn on_track(&self, track: Arc<dyn TrackRemote>) {
        // A client may send video; nothing here uses it, and an unread track would only fill its queue.
        tokio::spawn(async move { while track.poll().await.is_some() {} });
    }
}
