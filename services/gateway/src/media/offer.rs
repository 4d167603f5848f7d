//! What a client's SDP offer asks for, read before anything is built for it.

use contract::media::VideoCodec;
use contract::{Error, Reason};
use rtc::peer_connection::sdp::RTCSessionDescription;
use rtc::sdp::description::media::MediaDescription;

const TRANSPORT_CC: &str = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";

/// The parts of an offer that decide how a session is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) video: CodecLine,
    pub(crate) codec: VideoCodec,
    /// Payload type of the retransmissions that belong to the video codec.
    pub(crate) rtx: Option<u8>,
    /// The client reports arrivals for transport-wide congestion control.
    pub(crate) transport_cc: bool,
    /// First audio codec, so that an audio section can be answered as inactive.
    pub(crate) audio: Option<CodecLine>,
}

/// One payload type as the offer describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CodecLine {
    pub(crate) payload_type: u8,
    pub(crate) name: String,
    pub(crate) clock_rate: u32,
    pub(crate) channels: u16,
    pub(crate) fmtp: String,
}

/// # Errors
/// `bad_sdp` if it is no SDP or has no video section that wants to receive; `no_common_codec` if that section has neither
/// H.264 constrained baseline with packetization-mode 1 nor VP8.
pub(crate) fn inspect(sdp: &str) -> Result<Offer, Error> {
    let bad = |text: &str| Error::new(Reason::BadSdp, text);
    let parsed = RTCSessionDescription::offer(sdp.to_owned())
        .and_then(|description| description.unmarshal())
        .map_err(|e| bad("the SDP cannot be parsed").detail(e.to_string()))?;
    let of_kind = |kind: &'static str| {
        parsed.media_descriptions.iter().filter(move |media| media.media_name.media == kind)
    };
    let video = of_kind("video")
        .find(|media| receives(media))
        .ok_or_else(|| bad("the offer has no video section that is recvonly or sendrecv"))?;
    let codecs = codecs(video);
    let (chosen, codec) = codecs.iter().find_map(|line| Some((line, usable(line)?))).ok_or_else(|| {
        let names: Vec<&str> = codecs.iter().map(|line| line.name.as_str()).collect();
        Error::new(
            Reason::NoCommonCodec,
            format!(
                "the offer has {}: H264 (constrained baseline, packetization-mode 1) or VP8 is needed",
                names.join(", ")
            ),
        )
    })?;
    let apt = format!("apt={}", chosen.payload_type);
    let rtx = codecs
        .iter()
        .find(|line| line.name.eq_ignore_ascii_case("rtx") && line.fmtp.split(';').any(|f| f.trim() == apt))
        .map(|line| line.payload_type);
    Ok(Offer {
        transport_cc: has_transport_cc(video, chosen.payload_type),
        audio: of_kind("audio").find_map(|media| self::codecs(media).into_iter().next()),
        video: chosen.clone(),
        codec,
        rtx,
    })
}

fn receives(media: &MediaDescription) -> bool {
    let refused = media.media_name.port.value == 0 && !media.has_attribute("bundle-only");
    !refused && !media.has_attribute("sendonly") && !media.has_attribute("inactive")
}

/// In the client's order of preference.
fn codecs(media: &MediaDescription) -> Vec<CodecLine> {
    media.media_name.formats.iter().filter_map(|format| codec_line(media, format)).collect()
}

fn codec_line(media: &MediaDescription, format: &str) -> Option<CodecLine> {
    let value_of = |key: &str| {
        media.attributes.iter().filter(|a| a.key == key).find_map(|a| {
            let (payload_type, rest) = a.value.as_deref()?.split_once(' ')?;
            (payload_type == format).then(|| rest.trim().to_owned())
        })
    };
    let map = value_of("rtpmap")?;
    let mut parts = map.split('/');
    Some(CodecLine {
        payload_type: format.parse().ok()?,
        name: parts.next()?.to_owned(),
        clock_rate: parts.next()?.parse().ok()?,
        channels: parts.next().and_then(|n| n.parse().ok()).unwrap_or(0),
        fmtp: value_of("fmtp").unwrap_or_default(),
    })
}

fn usable(line: &CodecLine) -> Option<VideoCodec> {
    if line.name.eq_ignore_ascii_case("VP8") {
        return Some(VideoCodec::Vp8);
    }
    let parameter = |key: &str| {
        line.fmtp
            .split(';')
            .find_map(|entry| entry.trim().strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
    };
    let baseline = parameter("profile-level-id").is_none_or(|id| id.to_ascii_lowercase().starts_with("42"));
    let fragments = parameter("packetization-mode").as_deref() == Some("1");
    (line.name.eq_ignore_ascii_case("H264") && baseline && fragments).then_some(VideoCodec::H264)
}

fn has_transport_cc(media: &MediaDescription, payload_type: u8) -> bool {
    let values = |key: &'static str| {
        media.attributes.iter().filter(move |a| a.key == key).filter_map(|a| a.value.as_deref())
    };
    let numbered = values("extmap").any(|value| value.ends_with(TRANSPORT_CC));
    let feedback = |value: &str| {
        value.split_once(' ').is_some_and(|(format, name)| {
            (format == "*" || format == payload_type.to_string()) && name.trim() == "transport-cc"
        })
    };
    numbered && values("rtcp-fb").any(feedback)
}

/// The answer with its host candidates under `public_ip`, for a server behind a one-to-one NAT.
#[must_use]
pub(crate) fn announce(answer: &str, public_ip: std::net::IpAddr) -> String {
    let rewritten = answer.split_inclusive('\n').map(|line| {
        let mut fields: Vec<&str> = line.split(' ').collect();
        let host =
            line.starts_with("a=candidate:") && fields.get(7).is_some_and(|kind| kind.trim_end() == "host");
        let public = public_ip.to_string();
        if host && let Some(address) = fields.get_mut(4) {
            *address = &public;
        }
        fields.join(" ")
    });
    rewritten.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(sections: &str) -> String {
        format!("v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n{sections}")
    }

    const VIDEO: &str = "m=video 9 UDP/TLS/RTP/SAVPF 98 102 103 125 96 97\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=recvonly\r\n\
        a=rtpmap:98 VP9/90000\r\n\
        a=rtpmap:102 H264/90000\r\na=fmtp:102 packetization-mode=0;profile-level-id=42e01f\r\n\
        a=rtpmap:103 rtx/90000\r\na=fmtp:103 apt=125\r\n\
        a=rtpmap:125 H264/90000\r\na=fmtp:125 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42E01F\r\n\
        a=rtpmap:96 VP8/90000\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n";

    #[test]
    fn the_first_usable_codec_of_the_client_wins() {
        let h264 = inspect(&offer(VIDEO)).unwrap();
        assert_eq!((h264.codec, h264.video.payload_type, h264.rtx), (VideoCodec::H264, 125, Some(103)));
        let vp8_first = VIDEO.replace("SAVPF 98 102 103 125 96 97", "SAVPF 96 97 125 103");
        let vp8 = inspect(&offer(&vp8_first)).unwrap();
        assert_eq!((vp8.codec, vp8.video.payload_type, vp8.rtx), (VideoCodec::Vp8, 96, Some(97)));
    }

    #[test]
    fn without_a_common_codec_the_refusal_names_what_was_offered() {
        let error = inspect(&offer(&VIDEO.replace("98 102 103 125 96 97", "98 102"))).unwrap_err();
        assert_eq!(error.reason, Reason::NoCommonCodec);
        assert!(error.message.contains("VP9, H264"), "{}", error.message);
    }

    #[test]
    fn nonsense_and_offers_that_cannot_receive_are_bad_sdp() {
        for sdp in ["", "hello", "v=0\r\nm=video", &offer(""), &offer(&VIDEO.replace("recvonly", "sendonly"))]
        {
            assert_eq!(inspect(sdp).unwrap_err().reason, Reason::BadSdp, "{sdp:?}");
        }
    }

    #[test]
    fn transport_cc_needs_both_the_extension_and_the_feedback() {
        let feedback = format!("{VIDEO}a=rtcp-fb:125 transport-cc\r\n");
        assert!(!inspect(&offer(&feedback)).unwrap().transport_cc);
        let both = format!("{feedback}a=extmap:3 {TRANSPORT_CC}\r\n");
        assert!(inspect(&offer(&both)).unwrap().transport_cc);
    }

    #[test]
    fn an_audio_section_is_noticed() {
        let audio = "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 0.0.0.0\r\na=mid:1\r\na=recvonly\r\na=rtpmap:111 opus/48000/2\r\n";
        let line = inspect(&offer(&format!("{VIDEO}{audio}"))).unwrap().audio.unwrap();
        assert_eq!((line.payload_type, line.clock_rate, line.channels), (111, 48_000, 2));
    }

    #[test]
    fn only_host_candidates_are_announced_under_the_public_address() {
        let answer = "a=candidate:1 1 udp 2130706431 10.0.0.5 50000 typ host\r\na=candidate:2 1 udp 1 5.6.7.8 50001 typ srflx\r\n";
        let announced = announce(answer, "1.2.3.4".parse().unwrap());
        assert!(announced.contains("1.2.3.4 50000 typ host\r\n") && announced.contains("5.6.7.8 50001"));
        assert!(!announced.contains("10.0.0.5"));
    }
}
