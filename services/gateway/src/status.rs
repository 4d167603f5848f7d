//! What the gateway tells about itself on `cell.{cell}.status`.

use std::time::Duration;

use contract::status::{ProcessStatus, Role, STATUS_INTERVAL_MS};
use contract::{CONTRACT_VERSION, subjects};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::BUILD;
use crate::app::App;

/// Publishes until the process stops.
pub(crate) async fn publish(app: App) {
    app.broker().wait().await;
    let cell = app.config().common.cell.id.clone();
    let subject = subjects::cell_status(&cell);
    let mut tick = interval(Duration::from_millis(STATUS_INTERVAL_MS));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let snapshot = app.cell().now();
        let identity = app.identity();
        let status = ProcessStatus {
            version: CONTRACT_VERSION,
            cell: cell.clone(),
            role: Role::Gateway,
            instance: identity.instance,
            build: BUILD.to_owned(),
            ready: snapshot.ready(),
            waiting_for: snapshot.waiting_for,
            draining: app.stop().is_cancelled(),
            uptime_ms: u64::try_from(identity.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            pid: std::process::id(),
            rss_bytes: runtime::vitals::rss_bytes(),
            mesh: None,
            stage0: None,
        };
        let published = async { app.broker().control()?.publish(&subject, &status).await };
        if let Err(error) = published.await {
            debug!(%error, "the status was not published");
        }
    }
}
