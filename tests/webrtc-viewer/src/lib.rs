//! A viewer: the webrtc crate as a client of the gateway, for tests and measurements. What goes wrong ends in a panic that
//! says what was waited for.

#![allow(clippy::unwrap_used, reason = "a viewer that cannot go on says so by panicking")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use contract::SessionId;
use contract::media::VideoCodec;
use rtc::ice::mdns::MulticastDnsMode;
use rtc::peer_connection::configuration::media_engine::MediaEngine;
use rtc::peer_connection::configuration::setting_engine::SettingEngineBuilder;
use rtc::peer_connection::sdp::RTCSessionDescription;
use rtc::rtcp::payload_feedbacks::picture_loss_indication::PictureLossIndication;
use rtc::rtp::Packet;
use rtc::rtp_transceiver::rtp_sender::{
    RTCPFeedback, RTCRtpCodec, RTCRtpCodecParameters, RTCRtpCodingParameters, RTCRtpEncodingParameters,
    RtpCodecKind,
};
use rtc::rtp_transceiver::{RTCRtpTransceiverDirection, RTCRtpTransceiverInit};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;
use webrtc::data_channel::{DataChannel, DataChannelEvent};
use webrtc::media_stream::track_remote::{TrackRemote, TrackRemoteEvent};
use webrtc::peer_connection::{
    PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCIceGatheringState,
    RTCPeerConnectionState,
};

/// Long enough for a loaded machine; conditions end waits early.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Viewer {
    pub connection: Arc<dyn PeerConnection>,
    pub id: SessionId,
    pub answer: String,
    pub channel: Arc<dyn DataChannel>,
    packets: mpsc::Receiver<Packet>,
    messages: mpsc::Receiver<Value>,
    track: Arc<Mutex<Option<Arc<dyn TrackRemote>>>>,
    states: mpsc::Receiver<RTCPeerConnectionState>,
}

/// What a viewer asks for.
#[derive(Clone)]
pub struct Wish {
    pub codecs: Vec<VideoCodec>,
    pub direction: RTCRtpTransceiverDirection,
    pub audio: bool,
    pub parameters: Value,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            codecs: vec![VideoCodec::Vp8],
            direction: RTCRtpTransceiverDirection::Recvonly,
            audio: false,
            parameters: json!({"prompts": [{"text": "a fox"}]}),
        }
    }
}

/// Not a server's message: the channel is open.
const OPENED: &str = "opened";

struct Handler {
    gathered: mpsc::Sender<()>,
    states: mpsc::Sender<RTCPeerConnectionState>,
    packets: mpsc::Sender<Packet>,
    track: Arc<Mutex<Option<Arc<dyn TrackRemote>>>>,
}

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_ice_gathering_state_change(&self, state: RTCIceGatheringState) {
        if state == RTCIceGatheringState::Complete {
            let _ = self.gathered.try_send(());
        }
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        let _ = self.states.try_send(state);
    }

    async fn on_track(&self, track: Arc<dyn TrackRemote>) {
        *self.track.lock().unwrap() = Some(Arc::clone(&track));
        let packets = self.packets.clone();
        tokio::spawn(async move {
            while let Some(event) = track.poll().await {
                if let TrackRemoteEvent::OnRtpPacket(packet) = event {
                    let _ = packets.try_send(packet);
                }
            }
        });
    }
}

fn video_codec(codec: VideoCodec) -> (RTCRtpCodec, u8) {
    let (name, fmtp, payload_type) = match codec {
        VideoCodec::H264 => {
            ("video/H264", "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f", 102)
        }
        VideoCodec::Vp8 => ("video/VP8", "", 96),
    };
    let feedback =
        |typ: &str, parameter: &str| RTCPFeedback { typ: typ.to_owned(), parameter: parameter.to_owned() };
    let codec = RTCRtpCodec {
        mime_type: name.to_owned(),
        clock_rate: 90_000,
        channels: 0,
        sdp_fmtp_line: fmtp.to_owned(),
        rtcp_feedback: vec![feedback("nack", ""), feedback("nack", "pli"), feedback("goog-remb", "")],
    };
    (codec, payload_type)
}

fn engine(wish: &Wish) -> MediaEngine {
    let mut engine = MediaEngine::default();
    for codec in &wish.codecs {
        let (rtp_codec, payload_type) = video_codec(*codec);
        engine
            .register_codec(RTCRtpCodecParameters { rtp_codec, payload_type }, RtpCodecKind::Video)
            .unwrap();
    }
    let opus = RTCRtpCodec {
        mime_type: "audio/opus".to_owned(),
        clock_rate: 48_000,
        channels: 2,
        sdp_fmtp_line: String::new(),
        rtcp_feedback: Vec::new(),
    };
    engine
        .register_codec(RTCRtpCodecParameters { rtp_codec: opus, payload_type: 111 }, RtpCodecKind::Audio)
        .unwrap();
    engine
}

impl Viewer {
    /// An offer with all its candidates, and the connection that made it.
    async fn offer(wish: &Wish) -> (Self, String) {
        let (gathered_tx, mut gathered) = mpsc::channel(1);
        let (state_tx, states) = mpsc::channel(64);
        let (packet_tx, packets) = mpsc::channel(4096);
        let (message_tx, messages) = mpsc::channel(256);
        let track = Arc::default();
        let handler = Handler {
            gathered: gathered_tx,
            states: state_tx,
            packets: packet_tx,
            track: Arc::clone(&track),
        };
        let settings = SettingEngineBuilder::new()
            .with_multicast_dns_mode(MulticastDnsMode::Disabled)
            .with_include_loopback_candidate(true)
            .build();
        let connecting = PeerConnectionBuilder::new()
            .with_media_engine(engine(wish))
            .with_setting_engine(settings)
            .with_handler(Arc::new(handler))
            .with_udp_addrs(vec!["127.0.0.1:0"])
            .build();
        let connection: Arc<dyn PeerConnection> = Arc::new(Box::pin(connecting).await.unwrap());
        let channel = connection.create_data_channel("parameters", None).await.unwrap();
        let encoding = || RTCRtpEncodingParameters {
            rtp_coding_parameters: RTCRtpCodingParameters { ssrc: Some(77), ..Default::default() },
            codec: video_codec(wish.codecs[0]).0,
            ..Default::default()
        };
        let init = |direction: RTCRtpTransceiverDirection| {
            let send_encodings = if direction.has_send() { vec![encoding()] } else { Vec::new() };
            Some(RTCRtpTransceiverInit { direction, send_encodings, ..RTCRtpTransceiverInit::default() })
        };
        connection.add_transceiver_from_kind(RtpCodecKind::Video, init(wish.direction)).await.unwrap();
        if wish.audio {
            let recvonly = init(RTCRtpTransceiverDirection::Recvonly);
            connection.add_transceiver_from_kind(RtpCodecKind::Audio, recvonly).await.unwrap();
        }
        let offer = connection.create_offer(None).await.unwrap();
        connection.set_local_description(offer).await.unwrap();
        timeout(PATIENCE, gathered.recv()).await.expect("candidates are gathered");
        let sdp = connection.local_description().await.unwrap().sdp;
        tokio::spawn(read_channel(Arc::clone(&channel), message_tx));
        let viewer = Self {
            connection,
            id: SessionId(uuid::Uuid::nil()),
            answer: String::new(),
            channel,
            packets,
            messages,
            track,
            states,
        };
        (viewer, sdp)
    }

    /// An offer as a body, with nobody behind it.
    pub async fn offer_body(wish: &Wish) -> Value {
        let (viewer, sdp) = Self::offer(wish).await;
        viewer.connection.close().await.unwrap();
        json!({"sdp": sdp, "type": "offer", "initialParameters": wish.parameters})
    }

    /// Connects to the gateway at `url`.
    ///
    /// # Errors
    /// The status and body of its refusal.
    pub async fn connect(url: &str, wish: Wish) -> Result<Self, (u16, Value)> {
        let (mut viewer, sdp) = Self::offer(&wish).await;
        let body = json!({"sdp": sdp, "type": "offer", "initialParameters": wish.parameters});
        let request = reqwest::Client::new().post(format!("{url}/api/v1/webrtc/offer")).json(&body);
        let response = request.timeout(PATIENCE).send().await.unwrap();
        let status = response.status().as_u16();
        let answer: Value = response.json().await.unwrap();
        if status != 200 {
            viewer.connection.close().await.unwrap();
            return Err((status, answer));
        }
        viewer.id = answer["sessionId"].as_str().unwrap().parse().unwrap();
        viewer.answer = answer["sdp"].as_str().unwrap().to_owned();
        assert_eq!(answer["type"], "answer");
        let answer = RTCSessionDescription::answer(viewer.answer.clone()).unwrap();
        viewer.connection.set_remote_description(answer).await.unwrap();
        viewer.reach(RTCPeerConnectionState::Connected).await;
        viewer.message(OPENED).await;
        Ok(viewer)
    }

    pub async fn reach(&mut self, wanted: RTCPeerConnectionState) {
        let reached = async { while self.states.recv().await.expect("the connection lives") != wanted {} };
        timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{wanted} is not reached"));
    }

    pub async fn packet(&mut self) -> Packet {
        timeout(PATIENCE, self.packets.recv()).await.expect("a packet in time").expect("a packet")
    }

    /// Forgets the packets that are already here.
    pub fn skip_packets(&mut self) {
        while self.packets.try_recv().is_ok() {}
    }

    /// The next message of this type.
    pub async fn message(&mut self, kind: &str) -> Value {
        let found = async {
            loop {
                let message = self.messages.recv().await.expect("the channel is open");
                if message["type"] == kind {
                    return message;
                }
            }
        };
        timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no {kind} within {PATIENCE:?}"))
    }

    pub async fn say(&self, text: &str) {
        self.channel.send_text(text).await.unwrap();
    }

    pub async fn ask_for_a_keyframe(&mut self) {
        let media_ssrc = self.packet().await.header.ssrc;
        let track = self.track.lock().unwrap().clone().unwrap();
        let request = PictureLossIndication { sender_ssrc: 0, media_ssrc };
        track.write_rtcp(vec![Box::new(request)]).await.unwrap();
    }
}

async fn read_channel(channel: Arc<dyn DataChannel>, messages: mpsc::Sender<Value>) {
    while let Some(event) = channel.poll().await {
        let message = match event {
            DataChannelEvent::OnOpen => json!({"type": OPENED}),
            DataChannelEvent::OnMessage(message) => serde_json::from_slice(&message.data).unwrap(),
            _ => continue,
        };
        let _ = messages.try_send(message);
    }
}
