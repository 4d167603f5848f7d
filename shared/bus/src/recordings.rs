//! The flight recorders of a cell's processes, each asked on its own subject.

use contract::codec::MAX_PAYLOAD;
use contract::ops::{CellReport, ProcessState};
use contract::recording::{Recording, RecordingRequest};
use contract::{Deadline, subjects};
use futures_util::future::join_all;
use tracing::debug;

use crate::bus::Bus;

/// Room for what JSON puts around each recording.
const AROUND: usize = 64;

/// Fills in the recorder of every process that is heard, keeps one and answers by `deadline`. Each gets its share of what
/// the report leaves free of a payload, so that the whole still fits.
pub async fn fill_in(bus: &Bus, report: &mut CellReport, deadline: Deadline) {
    let bare = serde_json::to_vec(&report).map_or(MAX_PAYLOAD, |bytes| bytes.len());
    let cell = report.cell.clone();
    let mut heard: Vec<_> =
        report.processes.iter_mut().filter(|process| process.state != ProcessState::Silent).collect();
    let share = MAX_PAYLOAD.saturating_sub(bare) / heard.len().max(1);
    let request = RecordingRequest { max_bytes: share.saturating_sub(AROUND) as u64 };
    let asked = heard.iter().map(|process| {
        let subject = subjects::recorder(&cell, process.status.instance);
        async move { bus.request::<_, Recording>(&subject, &request, deadline).await }
    });
    let answers = join_all(asked).await;
    for (process, answer) in heard.iter_mut().zip(answers) {
        match answer {
            Ok(recording) => process.recorder = Some(recording.newest(request.max_bytes)),
            Err(error) => debug!(%error, role = process.status.role.as_str(), "no recording"),
        }
    }
}
