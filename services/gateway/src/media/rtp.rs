//! Access units into RTP packets with exact timestamps.

use std::time::{Duration, Instant};

use bytes::Bytes;
use contract::media::VideoCodec;
use contract::{Error, Incarnation, Reason};
use rtc::rtp::codec::h264::H264Payloader;
use rtc::rtp::codec::vp8::Vp8Payloader;
use rtc::rtp::packetizer::Payloader;
use rtc::rtp::{Header, Packet};

use super::reassembly::AccessUnit;

/// Payload bytes of a packet: leaves room for RTP, SRTP, header extensions, TURN and IP within 1280.
const MAX_PAYLOAD: usize = 1150;
/// Ticks of the RTP clock in a millisecond.
const TICKS: u128 = 90;
/// The least time between the last frame of one life of a session and the first of the next.
const LIFE_STEP: Duration = Duration::from_millis(33);

/// Numbers and stamps the packets of one outgoing stream.
pub(crate) struct Packetizer {
    payloader: Box<dyn Payloader>,
    codec: VideoCodec,
    ssrc: u32,
    payload_type: u8,
    sequence: u16,
    clock: Clock,
}

impl Packetizer {
    pub(crate) fn new(codec: VideoCodec, ssrc: u32, payload_type: u8) -> Self {
        let payloader: Box<dyn Payloader> = match codec {
            VideoCodec::H264 => Box::new(H264Payloader::default()),
            VideoCodec::Vp8 => {
                let mut payloader = Vp8Payloader::default();
                payloader.enable_picture_id = true;
                Box::new(payloader)
            }
        };
        let clock = Clock::new(rand::random());
        Self { payloader, codec, ssrc, payload_type, sequence: rand::random(), clock }
    }

    /// # Errors
    /// `internal` if stage0 sent another codec than was agreed, or the unit cannot be split.
    pub(crate) fn packetize(&mut self, now: Instant, unit: AccessUnit) -> Result<Vec<Packet>, Error> {
        if unit.codec != self.codec {
            let (sent, agreed) = (unit.codec.as_str(), self.codec.as_str());
            return Err(Error::new(
                Reason::Internal,
                format!("stage0 sent {sent} where {agreed} was agreed"),
            ));
        }
        let timestamp = self.clock.stamp(now, unit.incarnation, unit.timestamp);
        let payloads = self.payloader.payload(MAX_PAYLOAD, &Bytes::from(unit.data)).map_err(|e| {
            Error::new(Reason::Internal, "an access unit could not be split into packets")
                .detail(e.to_string())
        })?;
        let last = payloads.len().saturating_sub(1);
        let packets = payloads.into_iter().enumerate().map(|(index, payload)| {
            let header = Header {
                version: 2,
                marker: index == last,
                payload_type: self.payload_type,
                sequence_number: self.sequence,
                timestamp,
                ssrc: self.ssrc,
                ..Header::default()
            };
            self.sequence = self.sequence.wrapping_add(1);
            Packet { header, payload }
        });
        Ok(packets.collect())
    }
}

/// Maps presentation times of each life of a session onto one RTP clock that never steps back. Between two lives it goes
/// on with the time that passed, as receivers expect.
#[derive(Debug)]
struct Clock {
    life: Option<(Incarnation, u64)>,
    /// When the last frame was stamped.
    at: Option<Instant>,
    /// RTP time of the current life's first frame.
    base: u32,
    last: u32,
}

impl Clock {
    fn new(start: u32) -> Self {
        Self { life: None, at: None, base: start, last: start }
    }

    fn stamp(&mut self, now: Instant, incarnation: Incarnation, timestamp: u64) -> u32 {
        let passed = self.at.replace(now).map(|at| now.saturating_duration_since(at));
        let first = match self.life {
            Some((life, first)) if life == incarnation => first,
            _ => {
                if let Some(passed) = passed {
                    // RTP time wraps by design.
                    self.base = self.last.wrapping_add((passed.max(LIFE_STEP).as_millis() * TICKS) as u32);
                }
                self.life = Some((incarnation, timestamp));
                timestamp
            }
        };
        self.last = self.base.wrapping_add(timestamp.wrapping_sub(first) as u32);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(codec: VideoCodec, timestamp: u64, data: Vec<u8>) -> AccessUnit {
        AccessUnit { incarnation: Incarnation(1), codec, keyframe: true, timestamp, data }
    }

    #[test]
    fn packets_of_a_unit_share_its_time_and_only_the_last_is_marked() {
        let mut packetizer = Packetizer::new(VideoCodec::Vp8, 7, 96);
        let now = Instant::now();
        let first = packetizer.packetize(now, unit(VideoCodec::Vp8, 1000, vec![1; 3000])).unwrap();
        let second = packetizer.packetize(now, unit(VideoCodec::Vp8, 4750, vec![1; 10])).unwrap();
        assert_eq!(first.iter().map(|p| p.header.marker).collect::<Vec<_>>(), [false, false, true]);
        assert!(first.iter().all(|p| p.header.timestamp == first[0].header.timestamp && p.header.ssrc == 7));
        assert_eq!(second[0].header.timestamp.wrapping_sub(first[0].header.timestamp), 3750);
        assert_eq!(second[0].header.sequence_number, first[2].header.sequence_number.wrapping_add(1));
    }

    #[test]
    fn another_codec_than_agreed_is_an_error() {
        let mut packetizer = Packetizer::new(VideoCodec::H264, 7, 96);
        assert!(packetizer.packetize(Instant::now(), unit(VideoCodec::Vp8, 0, vec![1])).is_err());
    }

    #[test]
    fn time_goes_on_over_lives_and_over_the_wrap() {
        let mut clock = Clock::new(u32::MAX - 100);
        let now = Instant::now();
        let later = now + Duration::from_secs(5);
        let a = clock.stamp(now, Incarnation(1), 50_000);
        let b = clock.stamp(now, Incarnation(1), 53_000);
        let c = clock.stamp(later, Incarnation(2), 0);
        let d = clock.stamp(later, Incarnation(2), 3_000);
        let e = clock.stamp(later, Incarnation(3), 9_000);
        let steps = [(a, b), (b, c), (c, d), (d, e)].map(|(from, to)| to.wrapping_sub(from));
        assert_eq!(steps, [3000, 5 * 90_000, 3000, 2970]);
    }
}
