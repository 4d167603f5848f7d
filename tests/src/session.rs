//! The one session of a cell, as its gateway tells of it.

use std::time::Duration;

use serde_json::Value;

use crate::cell::Cell;
use crate::wait;

/// The one session that the gateway has: its id and counters.
pub async fn session(cell: &Cell) -> Option<(String, Value)> {
    let sessions = cell.http().get("/api/v1/session/metrics").await.json();
    let (id, metrics) = sessions["sessions"].as_object()?.iter().next()?;
    Some((id.clone(), metrics.clone()))
}

/// Waits until it has shown more than `frames` frames; its id.
///
/// # Panics
/// If it does not come to that.
pub async fn streaming(cell: &Cell, frames: u64) -> String {
    wait::until("a streaming session", Duration::from_secs(60), || async {
        let (id, metrics) = session(cell).await?;
        (metrics["frames_out"].as_u64()? > frames).then_some(id)
    })
    .await
}

/// Waits until it is in this state.
///
/// # Panics
/// If it does not come to that.
pub async fn in_state(cell: &Cell, state: &str) {
    wait::until(state, Duration::from_secs(20), || async {
        (session(cell).await?.1["state"] == state).then_some(())
    })
    .await;
}
