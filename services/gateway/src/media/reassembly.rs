//! Access units out of the parts that stage0 publishes. After a gap, deltas are dropped until the next keyframe: RTP
//! numbers are the gateway's own, so the browser could not see it.

use std::time::{Duration, Instant};

use contract::Incarnation;
use contract::media::{MediaPart, VideoCodec};

/// A keyframe is asked for at most this often.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// Parts of one access unit: 15 MiB.
const MAX_PARTS: u16 = 64;

/// One coded frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AccessUnit {
    pub(crate) incarnation: Incarnation,
    pub(crate) codec: VideoCodec,
    pub(crate) keyframe: bool,
    /// 90 kHz, monotonic within the incarnation.
    pub(crate) timestamp: u64,
    pub(crate) data: Vec<u8>,
}

/// What one part led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pushed {
    pub(crate) unit: Option<AccessUnit>,
    /// stage0 should make the next access unit a keyframe.
    pub(crate) ask_keyframe: bool,
}

#[derive(Debug)]
pub(crate) struct Reassembly {
    incarnation: Incarnation,
    /// Sequence number expected next, once one was seen.
    next: Option<u64>,
    partial: Option<Partial>,
    waiting_for_keyframe: bool,
    /// The receiver asked for a keyframe and none has passed since.
    wanted: bool,
    asked: Option<Instant>,
    gaps: u64,
    dropped: u64,
}

#[derive(Debug)]
struct Partial {
    unit: AccessUnit,
    next_part: u16,
    parts: u16,
}

impl Reassembly {
    pub(crate) fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            next: None,
            partial: None,
            waiting_for_keyframe: true,
            wanted: false,
            asked: None,
            gaps: 0,
            dropped: 0,
        }
    }

    /// Places where access units were missing.
    pub(crate) fn gaps(&self) -> u64 {
        self.gaps
    }

    /// Access units dropped because what they build on is missing.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// A viewer joined: it can start only at a keyframe. Returns whether to ask for one.
    pub(crate) fn join(&mut self, now: Instant) -> bool {
        self.waiting_for_keyframe = true;
        self.asked = None;
        self.ask(now)
    }

    /// The receiver asked for a keyframe. Returns whether to pass it on now; if it is too soon, a later unit will.
    pub(crate) fn receiver_asks(&mut self, now: Instant) -> bool {
        let pass_on = self.ask(now);
        self.wanted = !pass_on;
        pass_on
    }

    pub(crate) fn push(&mut self, now: Instant, part: MediaPart) -> Pushed {
        if part.incarnation < self.incarnation
            || part.parts == 0
            || part.parts > MAX_PARTS
            || part.part >= part.parts
        {
            return Pushed::default();
        }
        if part.incarnation > self.incarnation {
            let counted = (self.gaps, self.dropped);
            *self = Self::new(part.incarnation);
            (self.gaps, self.dropped) = counted;
        }
        if self.next.is_some_and(|next| part.sequence < next) {
            return Pushed::default();
        }
        let Some(unit) = self.assemble(part) else {
            return Pushed {
                unit: None,
                ask_keyframe: self.waiting_for_keyframe && self.partial.is_none() && self.ask(now),
            };
        };
        if unit.keyframe {
            self.waiting_for_keyframe = false;
            self.wanted = false;
        }
        if self.waiting_for_keyframe {
            self.dropped += 1;
            return Pushed { unit: None, ask_keyframe: self.ask(now) };
        }
        let ask_keyframe = self.wanted && self.ask(now);
        self.wanted &= !ask_keyframe;
        Pushed { unit: Some(unit), ask_keyframe }
    }

    /// Takes one part; returns the unit that it completes.
    fn assemble(&mut self, part: MediaPart) -> Option<AccessUnit> {
        if let Some(next) = self.next
            && part.sequence > next
        {
            self.gap();
            self.next = Some(part.sequence);
        }
        self.next.get_or_insert(part.sequence);
        let expected = self.partial.as_ref().map_or(0, |partial| partial.next_part);
        if part.part != expected || self.partial.as_ref().is_some_and(|partial| partial.parts != part.parts) {
            // Parts of one unit arrive in order or not at all.
            self.gap();
            self.next = Some(part.sequence + 1);
            return None;
        }
        let mut partial = match self.partial.take() {
            None => Partial {
                unit: AccessUnit {
                    incarnation: part.incarnation,
                    codec: part.codec,
                    keyframe: part.keyframe,
                    timestamp: part.timestamp,
                    data: part.data,
                },
                next_part: 1,
                parts: part.parts,
            },
            Some(mut partial) => {
                partial.unit.data.extend_from_slice(&part.data);
                partial.next_part += 1;
                partial
            }
        };
        if partial.next_part < partial.parts {
            self.partial = Some(partial);
            return None;
        }
        self.next = Some(part.sequence + 1);
        partial.unit.data.shrink_to_fit();
        Some(partial.unit)
    }

    fn gap(&mut self) {
        self.gaps += 1;
        self.partial = None;
        self.waiting_for_keyframe = true;
    }

    fn ask(&mut self, now: Instant) -> bool {
        let due = self.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= ASK_INTERVAL);
        if due {
            self.asked = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use contract::model::Size;
    use contract::{CacheEpoch, ChunkIndex, SessionId};

    use super::*;

    fn part(sequence: u64, keyframe: bool) -> MediaPart {
        MediaPart {
            session: SessionId(uuid::Uuid::nil()),
            incarnation: Incarnation(1),
            sequence,
            part: 0,
            parts: 1,
            codec: VideoCodec::Vp8,
            keyframe,
            timestamp: sequence * 3000,
            size: Size { width: 16, height: 16 },
            cache_epoch: CacheEpoch(1),
            chunk_index: ChunkIndex(0),
            frame: 0,
            data: vec![sequence as u8],
        }
    }

    fn sequences(reassembly: &mut Reassembly, now: Instant, parts: Vec<MediaPart>) -> Vec<u64> {
        parts
            .into_iter()
            .filter_map(|p| reassembly.push(now, p).unit)
            .map(|unit| unit.timestamp / 3000)
            .collect()
    }

    #[test]
    fn units_in_order_pass_from_the_first_keyframe_on() {
        let mut reassembly = Reassembly::new(Incarnation(1));
        let parts = vec![part(0, false), part(1, true), part(2, false), part(3, false)];
        assert_eq!(sequences(&mut reassembly, Instant::now(), parts), [1, 2, 3]);
        assert_eq!((reassembly.gaps(), reassembly.dropped()), (0, 1));
    }

    #[test]
    fn after_a_gap_nothing_passes_until_a_keyframe_and_one_is_asked_for_at_a_bounded_rate() {
        let mut reassembly = Reassembly::new(Incarnation(1));
        let start = Instant::now();
        assert_eq!(sequences(&mut reassembly, start, vec![part(0, true), part(1, false)]), [0, 1]);
        let asks: Vec<bool> = (3..20)
            .map(|n| reassembly.push(start + Duration::from_millis(n * 50), part(n, false)))
            .map(|pushed| {
                assert_eq!(pushed.unit, None);
                pushed.ask_keyframe
            })
            .collect();
        assert!(asks[0]);
        assert_eq!(asks.iter().filter(|asked| **asked).count(), 2);
        assert_eq!(sequences(&mut reassembly, start, vec![part(20, true), part(21, false)]), [20, 21]);
        assert_eq!(reassembly.gaps(), 1);
    }

    #[test]
    fn a_unit_in_parts_is_joined_and_a_missing_part_is_a_gap() {
        let now = Instant::now();
        let piece =
            |sequence, index: u16, keyframe| MediaPart { part: index, parts: 3, ..part(sequence, keyframe) };
        let mut reassembly = Reassembly::new(Incarnation(1));
        let unit = [0, 1, 2].into_iter().filter_map(|i| reassembly.push(now, piece(5, i, true)).unit).next();
        assert_eq!(unit.unwrap().data, [5, 5, 5]);
        assert!(reassembly.push(now, piece(6, 0, false)).unit.is_none());
        assert!(reassembly.push(now, piece(6, 2, false)).ask_keyframe);
        assert!(reassembly.push(now, part(7, false)).unit.is_none());
        assert!(reassembly.push(now, part(8, true)).unit.is_some());
    }

    #[test]
    fn a_lower_incarnation_is_dropped_and_a_higher_one_starts_over() {
        let now = Instant::now();
        let mut reassembly = Reassembly::new(Incarnation(1));
        reassembly.push(now, part(7, true));
        let of = |incarnation, sequence, keyframe| MediaPart {
            incarnation: Incarnation(incarnation),
            ..part(sequence, keyframe)
        };
        assert!(reassembly.push(now, of(0, 8, true)).unit.is_none());
        assert!(
            reassembly.push(now, of(2, 0, false)).unit.is_none(),
            "a delta of a life whose start is missing"
        );
        assert!(reassembly.push(now, of(2, 1, true)).unit.is_some());
        assert!(reassembly.push(now, part(8, true)).unit.is_none(), "of the older life");
    }

    #[test]
    fn a_repeated_unit_and_a_part_that_cannot_be_are_ignored() {
        let now = Instant::now();
        let mut reassembly = Reassembly::new(Incarnation(1));
        assert!(reassembly.push(now, part(0, true)).unit.is_some());
        assert_eq!(reassembly.push(now, part(0, true)), Pushed::default());
        assert_eq!(reassembly.push(now, MediaPart { part: 3, parts: 2, ..part(1, true) }), Pushed::default());
        assert!(reassembly.push(now, part(1, false)).unit.is_some());
    }

    #[test]
    fn a_receiver_that_asks_too_soon_is_not_forgotten() {
        let start = Instant::now();
        let mut reassembly = Reassembly::new(Incarnation(1));
        assert!(reassembly.join(start));
        reassembly.push(start, part(0, true));
        assert!(!reassembly.receiver_asks(start + Duration::from_millis(100)));
        assert!(!reassembly.push(start + Duration::from_millis(200), part(1, false)).ask_keyframe);
        let pushed = reassembly.push(start + Duration::from_millis(600), part(2, false));
        assert!(pushed.ask_keyframe && pushed.unit.is_some());
        assert!(!reassembly.push(start + Duration::from_millis(2000), part(3, false)).ask_keyframe);
    }

    #[test]
    fn a_viewer_that_joins_late_starts_at_a_keyframe() {
        let now = Instant::now();
        let mut reassembly = Reassembly::new(Incarnation(1));
        reassembly.push(now, part(0, true));
        assert!(reassembly.join(now));
        assert!(reassembly.push(now, part(1, false)).unit.is_none());
        assert!(reassembly.push(now, part(2, true)).unit.is_some());
    }
}
