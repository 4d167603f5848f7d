//! What a flight recorder tells: on the broker, and one JSON object a line in a dump.

use serde::{Deserialize, Serialize};

use crate::ids::{CellId, InstanceId};

/// Asks a process for its newest events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingRequest {
    /// JSON bytes that the answer may have.
    pub max_bytes: u64,
}

/// First line of a dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingHeader {
    /// The service's name.
    pub process: String,
    pub cell: CellId,
    /// Absent before the process had one.
    pub instance: Option<InstanceId>,
    pub pid: u32,
    /// Wall clock at `ms` 0, in milliseconds since 1970: the only wall-clock time in it.
    pub started_unix_ms: u64,
    /// What it was dumped for; absent when it was asked for.
    pub why: Option<String>,
    /// Older events that are not in it.
    pub missing: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// What a protocol machine was told.
    In,
    /// What it decided.
    Out,
    Fault,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordedEvent {
    /// Milliseconds since the process started.
    pub ms: f64,
    pub kind: EventKind,
    pub what: String,
}

/// Events of one process, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    pub header: RecordingHeader,
    pub events: Vec<RecordedEvent>,
}

impl Recording {
    /// The newest events that fit into `max_bytes` of JSON together with the header.
    #[must_use]
    pub fn newest(mut self, max_bytes: u64) -> Self {
        let size = |bytes: Result<Vec<u8>, _>| bytes.map_or(0, |bytes: Vec<u8>| bytes.len() as u64 + 1);
        // Room for the names and brackets of both, and for `missing` to grow.
        let mut left = max_bytes.saturating_sub(size(serde_json::to_vec(&self.header)) + 64);
        let fits = self.events.iter().rev().take_while(|event| {
            let cost = size(serde_json::to_vec(event));
            let fits = cost <= left;
            left = left.saturating_sub(cost);
            fits
        });
        let gone = self.events.len() - fits.count();
        self.events.drain(..gone);
        self.header.missing += gone as u64;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_events_that_fit_are_kept_and_the_others_counted() {
        let header = RecordingHeader {
            process: "mesh-leader".to_owned(),
            cell: CellId::default(),
            instance: Some(InstanceId::random()),
            pid: 7,
            started_unix_ms: 1,
            why: None,
            missing: 5,
        };
        let event = |n: u32| RecordedEvent {
            ms: f64::from(n) + 0.125,
            kind: EventKind::In,
            what: format!("\"quoted\" event {n}"),
        };
        let all = Recording { header, events: (0..200).map(event).collect() };
        let some = all.clone().newest(4_000);
        assert!(serde_json::to_vec(&some).unwrap().len() <= 4_000);
        assert!(some.events.len() > 10, "{}", some.events.len());
        assert_eq!(some.events.last(), all.events.last());
        assert_eq!(some.header.missing, 5 + 200 - some.events.len() as u64);
        assert_eq!(all.clone().newest(1 << 20), all);
        assert!(all.newest(0).events.is_empty());
    }
}
