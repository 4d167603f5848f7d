//! What every part of the gateway shares.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use contract::model::Size;
use contract::{Error, InstanceId, Reason};
use runtime::metrics::Metrics;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::cell::CellWatch;
use crate::config::Config;
use crate::media::ports::Ports;
use crate::origins::AllowedOrigins;
use crate::session::Sessions;

/// Clones share everything.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

struct Inner {
    config: Config,
    broker: Arc<Broker>,
    cell: CellWatch,
    sessions: Sessions,
    ports: Ports,
    load: Mutex<Option<Load>>,
    token: Option<String>,
    origins: AllowedOrigins,
    metrics: Metrics,
    identity: Identity,
    stop: CancellationToken,
}

/// Which life of which build this is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) instance: InstanceId,
    pub(crate) started: Instant,
    /// Milliseconds since 1970.
    pub(crate) started_unix_ms: u64,
}

/// The last `pipeline/load` that was accepted: what the next offers mean by "the loaded pipeline".
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) node_id: String,
    pub(crate) params: Value,
    pub(crate) size: Size,
    pub(crate) base_seed: Option<u64>,
}

impl App {
    /// # Errors
    /// `bad_field` for a port range, an allowed origin or a token file that cannot be used.
    pub(crate) fn new(config: Config, metrics: Metrics, stop: CancellationToken) -> Result<Self, Error> {
        let broker = Arc::new(Broker::new());
        let identity = Identity {
            instance: InstanceId::random(),
            started: Instant::now(),
            started_unix_ms: runtime::clock::unix_millis(),
        };
        Ok(Self(Arc::new(Inner {
            cell: CellWatch::start(config.common.cell.id.clone(), Arc::clone(&broker)),
            sessions: Sessions::new(config.gateway.max_sessions),
            ports: Ports::new(config.webrtc.port_range()?),
            token: config.gateway.token_file.as_deref().map(read_token).transpose()?,
            origins: AllowedOrigins::parse(&config.gateway.allowed_origins)?,
            load: Mutex::default(),
            broker,
            config,
            metrics,
            identity,
            stop,
        })))
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    pub(crate) fn broker(&self) -> &Broker {
        &self.0.broker
    }

    pub(crate) fn shared_broker(&self) -> Arc<Broker> {
        Arc::clone(&self.0.broker)
    }

    pub(crate) fn cell(&self) -> &CellWatch {
        &self.0.cell
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    pub(crate) fn ports(&self) -> &Ports {
        &self.0.ports
    }

    /// What `/api` requests must bring, if anything.
    pub(crate) fn token(&self) -> Option<&str> {
        self.0.token.as_deref()
    }

    /// Which web pages may use this server.
    pub(crate) fn origins(&self) -> &AllowedOrigins {
        &self.0.origins
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn identity(&self) -> Identity {
        self.0.identity
    }

    /// Cancelled when the process is to stop.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }

    pub(crate) fn load(&self) -> Option<Load> {
        self.0.load.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_load(&self, load: Load) {
        *self.0.load.lock().unwrap_or_else(PoisonError::into_inner) = Some(load);
    }
}

fn read_token(file: &Path) -> Result<String, Error> {
    let refuse =
        |why: &str| Error::new(Reason::BadField, format!("gateway.token_file {}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| refuse(&e.to_string()))?;
    let token = text.lines().next().unwrap_or_default().trim().to_owned();
    if token.is_empty() { Err(refuse("its first line is empty")) } else { Ok(token) }
}
