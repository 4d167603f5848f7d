//! What the tests share: a broker, a cell, a gateway, viewers.

pub(crate) mod cell;
pub(crate) mod encoder;
pub(crate) mod nats;

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use gateway::{Config, Running};
use runtime::Outcome;
use runtime::metrics::Metrics;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use nats::Nats;

/// Long enough for a loaded machine; conditions end waits early.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `probe` gives a value.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let poll = async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, poll).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

pub(crate) struct Gateway {
    pub(crate) url: String,
    pub(crate) http: reqwest::Client,
    stop: CancellationToken,
    finished: JoinHandle<Outcome>,
}

impl Gateway {
    pub(crate) async fn start(nats: &Nats, change: impl FnOnce(&mut Config)) -> Self {
        static METRICS: OnceLock<Metrics> = OnceLock::new();
        let metrics = METRICS.get_or_init(|| Metrics::install("gateway").unwrap()).clone();
        let mut config = Config::default();
        config.common.http.port = 0;
        config.common.nats.url = nats.url();
        change(&mut config);
        let stop = CancellationToken::new();
        let running = Running::start(config, metrics, stop.clone()).await.ok().unwrap();
        let address: SocketAddr = running.address();
        let finished = tokio::spawn(running.finished());
        Self { url: format!("http://{address}"), http: reqwest::Client::new(), stop, finished }
    }

    pub(crate) async fn ready(&self) {
        eventually("the gateway is ready", async || (self.get("/ready").await.0 == 200).then_some(())).await;
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.http.get(self.url.clone() + path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        answer(self.http.post(self.url.clone() + path).json(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> (u16, Value) {
        answer(self.http.patch(self.url.clone() + path).json(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> u16 {
        answer(self.http.delete(self.url.clone() + path)).await.0
    }

    /// Asks it to stop and waits until it has.
    pub(crate) async fn stop(self) -> Outcome {
        self.stop.cancel();
        timeout(Duration::from_secs(5), self.finished).await.expect("gone within 5 s").unwrap()
    }
}

pub(crate) async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let body = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}
