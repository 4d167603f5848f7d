//! The way to the broker, as every service takes it.

use std::time::Duration;

use bus::{Bus, BusConfig, ConnectionState};
use contract::{Error, Reason};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::metric_names;

/// Pause between attempts.
const RETRY: Duration = Duration::from_millis(250);

/// Tries until there is a connection; `None` when `stop` came first. The metrics follow it from then on, labelled
/// `name`.
///
/// # Errors
/// What no retry mends: refused credentials, settings that cannot be used.
pub async fn connect(
    config: &BusConfig,
    name: &'static str,
    stop: &CancellationToken,
) -> Result<Option<Bus>, Error> {
    let attempts = async {
        loop {
            match Bus::connect(config, name).await {
                Err(error) if error.reason == Reason::BrokerUnavailable => {
                    warn!(%error, detail = error.detail, "waiting for the broker");
                }
                done => return done,
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    let Some(connected) = stop.run_until_cancelled(attempts).await else { return Ok(None) };
    let bus = connected?;
    tokio::spawn(follow(bus.state(), name));
    Ok(Some(bus))
}

/// Ends with the connection.
async fn follow(mut state: watch::Receiver<ConnectionState>, name: &'static str) {
    let up = metrics::gauge!(metric_names::BUS_CONNECTED, "connection" => name);
    let reconnects = metrics::counter!(metric_names::BUS_RECONNECTS, "connection" => name);
    let mut was_connected = true;
    loop {
        let connected = state.borrow_and_update().is_connected();
        up.set(f64::from(u8::from(connected)));
        if connected && !was_connected {
            reconnects.increment(1);
        }
        was_connected = connected;
        if state.changed().await.is_err() {
            return up.set(0.0);
        }
    }
}
