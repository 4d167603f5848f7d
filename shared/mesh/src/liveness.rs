//! Who was heard when. A monitor whose own tick was late discounts the gap: a process that slept does not accuse its
//! peers.

use std::time::{Duration, Instant};

use contract::tp::Beat;
use contract::{Error, Reason, codec};

/// Beats are sent this often, both ways.
pub const BEAT_INTERVAL: Duration = Duration::from_millis(200);

/// A beat as it is on the socket: its length as a big-endian `u16`, then MessagePack.
///
/// # Errors
/// `payload_too_large` beyond what the length can say.
pub fn encode_beat(beat: &Beat) -> Result<Vec<u8>, Error> {
    let body = codec::encode(beat)?;
    let length = u16::try_from(body.len()).map_err(|_| {
        Error::new(Reason::PayloadTooLarge, format!("beat of {} bytes: 65535 are allowed", body.len()))
    })?;
    Ok([&length.to_be_bytes()[..], &body].concat())
}

/// Cuts what a socket delivers into beats.
#[derive(Clone, Debug, Default)]
pub struct BeatReader {
    bytes: Vec<u8>,
}

impl BeatReader {
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole beat.
    ///
    /// # Errors
    /// `malformed` for bytes that are no beat: the connection is of no use any more.
    pub fn next_beat(&mut self) -> Result<Option<Beat>, Error> {
        let Some((length, rest)) = self.bytes.split_first_chunk::<2>() else { return Ok(None) };
        let Some(body) = rest.get(..usize::from(u16::from_be_bytes(*length))) else { return Ok(None) };
        let beat = codec::decode(body)?;
        self.bytes.drain(..2 + body.len());
        Ok(Some(beat))
    }
}

/// Notices that this process itself did not run for a while.
#[derive(Clone, Copy, Debug)]
pub struct OwnTick {
    last: Option<Instant>,
    interval: Duration,
}

impl OwnTick {
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self { last: None, interval }
    }

    /// How much later than expected this tick comes; zero for ordinary jitter.
    pub fn late_by(&mut self, now: Instant) -> Duration {
        let gap = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.last = Some(now);
        if gap > self.interval * 4 { gap - self.interval } else { Duration::ZERO }
    }
}

/// When a peer was last heard.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    heard: Instant,
    allowed: Duration,
}

impl Watch {
    /// A peer that must be heard within `allowed` of `now`.
    #[must_use]
    pub fn new(now: Instant, allowed: Duration) -> Self {
        Self { heard: now, allowed }
    }

    /// The peer was heard; the next time within `allowed`.
    pub fn heard(&mut self, now: Instant, allowed: Duration) {
        *self = Self::new(now, allowed);
    }

    pub fn discount(&mut self, late: Duration) {
        self.heard += late;
    }

    /// How long the peer has been silent, if that is too long.
    #[must_use]
    pub fn silent_for(&self, now: Instant) -> Option<Duration> {
        let silence = now.saturating_duration_since(self.heard);
        (silence > self.allowed).then_some(silence)
    }
}

#[cfg(test)]
mod tests {
    use contract::envelope::MeshPhase;
    use contract::{InstanceId, MeshEpoch, Rank};

    use super::*;

    #[test]
    fn beats_are_cut_out_of_any_pieces() {
        let beat = Beat {
            mesh_epoch: MeshEpoch(7),
            rank: Rank(1),
            instance: InstanceId::random(),
            phase: MeshPhase::Ready,
            busy_ms: Some(12),
            leaving: false,
            fault: None,
        };
        let bytes = [encode_beat(&beat).unwrap(), encode_beat(&beat).unwrap()].concat();
        let mut reader = BeatReader::default();
        let mut beats = Vec::new();
        for piece in bytes.chunks(5) {
            reader.extend(piece);
            while let Some(beat) = reader.next_beat().unwrap() {
                beats.push(beat);
            }
        }
        assert_eq!(beats, [beat.clone(), beat]);
    }

    #[test]
    fn a_process_that_slept_does_not_accuse_its_peers() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut tick = OwnTick::new(ms(50));
        let mut watch = Watch::new(start, ms(800));
        assert_eq!(tick.late_by(start), ms(0));
        assert_eq!(tick.late_by(start + ms(60)), ms(0));
        let woke = start + ms(3060);
        watch.discount(tick.late_by(woke));
        assert_eq!(watch.silent_for(woke), None);
        assert!(watch.silent_for(woke + ms(850)).is_some());
    }
}
