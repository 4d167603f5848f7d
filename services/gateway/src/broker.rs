//! The two connections to the broker: control, and media on its own so that a slow viewer never delays control.

use std::sync::OnceLock;

use bus::{Bus, BusConfig};
use contract::{Error, Reason};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

#[derive(Debug)]
pub(crate) struct Broker {
    control: OnceLock<Connection>,
    media: OnceLock<Connection>,
    connected: watch::Sender<bool>,
}

#[derive(Clone)]
struct Connection(Bus);

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl Broker {
    pub(crate) fn new() -> Self {
        Self { control: OnceLock::new(), media: OnceLock::new(), connected: watch::Sender::new(false) }
    }

    /// Keeps trying until both connections stand, so that HTTP answers meanwhile. They reconnect by themselves after.
    ///
    /// # Errors
    /// What no retry mends: refused credentials, settings that cannot be used.
    pub(crate) async fn connect(&self, config: &BusConfig, stop: &CancellationToken) -> Result<(), Error> {
        for (slot, name) in [(&self.control, "gateway"), (&self.media, "gateway-media")] {
            let stopped = || Error::new(Reason::Draining, "the gateway is stopping");
            let bus = runtime::broker::connect(config, name, stop).await?.ok_or_else(stopped)?;
            let _ = slot.set(Connection(bus));
        }
        self.connected.send_replace(true);
        info!("both broker connections stand");
        Ok(())
    }

    /// Resolves once [`Self::connect`] has succeeded.
    pub(crate) async fn wait(&self) {
        let mut connected = self.connected.subscribe();
        // The sender lives as long as `self`.
        let _ = connected.wait_for(|connected| *connected).await;
    }

    /// # Errors
    /// `broker_unavailable` until the first connection stands.
    pub(crate) fn control(&self) -> Result<&Bus, Error> {
        self.control.get().map(|connection| &connection.0).ok_or_else(unavailable)
    }

    /// # Errors
    /// As [`Self::control`].
    pub(crate) fn media(&self) -> Result<&Bus, Error> {
        self.media.get().map(|connection| &connection.0).ok_or_else(unavailable)
    }

    pub(crate) fn is_connected(&self) -> bool {
        let up =
            |slot: &OnceLock<Connection>| slot.get().is_some_and(|c| c.0.state().borrow().is_connected());
        up(&self.control) && up(&self.media)
    }
}

fn unavailable() -> Error {
    Error::new(Reason::BrokerUnavailable, "the broker connection is not up yet")
}
