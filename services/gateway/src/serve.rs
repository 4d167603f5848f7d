//! From configuration to a gateway that answers, and its orderly end.

use std::net::SocketAddr;
use std::time::Duration;

use bus::{Service, ServiceInfo};
use contract::Error;
use runtime::metrics::Metrics;
use runtime::{Context, ExitCode, HealthServer, Outcome};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::app::App;
use crate::config::Config;
use crate::{http, ops, status};

/// Together well below the grace of a shutdown.
const DRAIN_WAIT: Duration = Duration::from_millis(3000);
const HTTP_WAIT: Duration = Duration::from_millis(500);

/// The body of the process.
pub async fn run(context: Context<Config>) -> Outcome {
    let stop = context.shutdown.token();
    let running =
        match Running::start(context.config.value.clone(), context.metrics.clone(), stop.clone()).await {
            Ok(running) => running,
            Err(outcome) => return outcome,
        };
    info!(url = format!("http://{}", running.address()), "gateway listening");
    running.finished().await
}

/// A gateway that serves until its token is cancelled.
pub struct Running {
    app: App,
    address: SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<std::io::Result<()>>,
    broker: JoinHandle<Result<Service, Error>>,
    status: JoinHandle<()>,
    stand_in: Option<JoinHandle<()>>,
}

impl Running {
    /// Binds and answers at once; the broker is connected to in the background.
    ///
    /// # Errors
    /// The address cannot be bound, or the configuration cannot be used.
    pub async fn start(config: Config, metrics: Metrics, stop: CancellationToken) -> Result<Self, Outcome> {
        let server = HealthServer::bind(&config.common.http).await?;
        let address = server.address();
        let app = App::new(config, metrics, stop.clone()).map_err(|e| Outcome::fatal(ExitCode::Config, e))?;
        let http_stop = CancellationToken::new();
        let server = tokio::spawn(server.serve(http::router(app.clone()), http_stop.clone()));
        let broker = tokio::spawn(connect(app.clone()));
        let status = tokio::spawn(status::publish(app.clone()));
        Ok(Self { app, address, stop: http_stop, server, broker, status, stand_in: None })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the token given at the start is cancelled, then ends sessions, tells their clients, and leaves.
    pub async fn finished(mut self) -> Outcome {
        let asked = self.app.stop().clone();
        let mut service = None;
        let outcome = loop {
            tokio::select! {
                () = asked.cancelled() => break Outcome::Stopped,
                served = &mut self.server => break match served {
                    Ok(Ok(())) => Outcome::failed("the HTTP server ended by itself"),
                    Ok(Err(e)) => Outcome::failed(format!("http: {e}")),
                    Err(e) => Outcome::failed(format!("http: {e}")),
                },
                connected = &mut self.broker, if service.is_none() => match connected {
                    Ok(Ok(connected)) => {
                        let stand_in = ops::stand_in(self.app.clone(), connected.clone());
                        self.stand_in = Some(tokio::spawn(stand_in));
                        service = Some(connected);
                    }
                    Ok(Err(error)) => break error.into(),
                    Err(e) => break Outcome::failed(format!("broker: {e}")),
                },
            }
        };
        if timeout(DRAIN_WAIT, self.app.sessions().drain()).await.is_err() {
            warn!("sessions were still ending when the time was up");
        }
        self.status.abort();
        if let Some(stand_in) = &self.stand_in {
            stand_in.abort();
        }
        self.broker.abort();
        self.stop.cancel();
        if let Some(service) = service {
            let _ = timeout(HTTP_WAIT, service.stop()).await;
        }
        if !self.server.is_finished() && timeout(HTTP_WAIT, &mut self.server).await.is_err() {
            self.server.abort();
        }
        outcome
    }
}

/// Connects, then registers the service that `$SRV` discovery finds. It has no endpoints, unless it stands in for stage0.
async fn connect(app: App) -> Result<Service, Error> {
    app.broker().connect(&app.config().common.nats, app.stop()).await?;
    let info = ServiceInfo {
        name: "gateway".to_owned(),
        version: crate::BUILD.to_owned(),
        description: "HTTP, the page and WebRTC".to_owned(),
        metadata: [
            ("cell".to_owned(), app.config().common.cell.id.to_string()),
            ("instance".to_owned(), app.identity().instance.to_string()),
        ]
        .into(),
    };
    loop {
        match app.broker().control()?.service(info.clone()).await {
            Ok(service) => return Ok(service),
            Err(error) if error.retryable() => {
                warn!(%error, "the service is not registered yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error),
        }
    }
}
