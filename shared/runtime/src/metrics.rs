//! The Prometheus recorder of the process.

use contract::{Error, Reason};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::metric_names;

/// Seconds; from a broker round trip to a slow chunk.
const LATENCY_BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// Renders what the `metrics` macros recorded in this process.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the recorder; every metric carries `service` as a label.
    ///
    /// # Errors
    /// `internal` if a recorder is installed already.
    pub fn install(service: &str) -> Result<Self, Error> {
        let builder = PrometheusBuilder::new()
            .add_global_label("service", service)
            .set_buckets(&LATENCY_BUCKETS)
            .map_err(|e| internal(&e))?;
        let handle = builder.install_recorder().map_err(|e| internal(&e))?;
        metric_names::describe();
        Ok(Self(handle))
    }

    #[must_use]
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }

    pub(crate) fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

fn internal(error: &dyn std::error::Error) -> Error {
    Error::new(Reason::Internal, "metrics recorder").detail(error.to_string())
}
