//! The events themselves: a bounded ring that, once full, allocates nothing more. Pure.

use std::collections::VecDeque;
use std::fmt::{self, Display, Write};

use contract::recording::{EventKind, RecordedEvent};

/// Events that are kept.
pub(super) const EVENTS: usize = 512;
/// Bytes of one event's text; longer ones are cut.
const TEXT: usize = 200;

#[derive(Debug, Default)]
pub(super) struct Ring {
    events: VecDeque<Event>,
    /// Events that made room for others.
    gone: u64,
}

#[derive(Debug)]
struct Event {
    at_us: u64,
    kind: EventKind,
    text: String,
}

impl Ring {
    pub(super) fn push(&mut self, at_us: u64, kind: EventKind, what: &dyn Display) {
        let oldest = if self.events.len() == EVENTS { self.events.pop_front() } else { None };
        let mut text = match oldest {
            Some(event) => {
                self.gone += 1;
                event.text
            }
            None => String::new(),
        };
        text.clear();
        // What does not fit is cut; nothing else can go wrong.
        let _ = write!(Cut(&mut text), "{what}");
        self.events.push_back(Event { at_us, kind, text });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(super) fn gone(&self) -> u64 {
        self.gone
    }

    pub(super) fn events(&self) -> Vec<RecordedEvent> {
        let event = |event: &Event| RecordedEvent {
            ms: event.at_us as f64 / 1e3,
            kind: event.kind,
            what: event.text.clone(),
        };
        self.events.iter().map(event).collect()
    }
}

/// Takes the first [`TEXT`] bytes.
struct Cut<'a>(&'a mut String);

impl Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = text.floor_char_boundary(TEXT.saturating_sub(self.0.len()));
        self.0.push_str(&text[..room]);
        if room < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_are_kept_and_the_others_counted() {
        let mut ring = Ring::default();
        for n in 0..EVENTS as u64 + 3 {
            ring.push(n * 500, EventKind::In, &format_args!("event {n}"));
        }
        let events = ring.events();
        assert_eq!((events.len(), ring.gone()), (EVENTS, 3));
        assert_eq!((events[0].what.as_str(), events[0].ms), ("event 3", 1.5));
        assert_eq!(events.last().unwrap().what, format!("event {}", EVENTS + 2));
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let mut ring = Ring::default();
        ring.push(0, EventKind::Fault, &"ü".repeat(TEXT));
        assert_eq!(ring.events()[0].what, "ü".repeat(TEXT / 2));
    }
}
