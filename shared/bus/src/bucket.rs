//! What all JetStream buckets need: opening, and a bound on every call.

use std::future::Future;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::CreateKeyValueErrorKind;
use async_nats::jetstream::kv::{Config, Store};
use contract::{Deadline, Error, Reason};
use tokio::time::timeout_at;

/// Opens a bucket; makes it where it is missing. Unbounded: see [`bounded`].
pub(crate) async fn open(js: &Context, config: Config) -> Result<Store, Error> {
    if let Ok(store) = js.get_key_value(&config.bucket).await {
        return Ok(store);
    }
    let bucket = config.bucket.clone();
    js.create_key_value(config).await.map_err(|e| match e.kind() {
        CreateKeyValueErrorKind::TimedOut => {
            Error::new(Reason::BrokerUnavailable, "JetStream did not answer").detail(e.to_string())
        }
        _ => refused(&bucket, &e),
    })
}

pub(crate) async fn bounded<F: Future>(deadline: Deadline, call: F) -> Result<F::Output, Error> {
    timeout_at(deadline.at().into(), call)
        .await
        .map_err(|_| Error::new(Reason::BudgetSpent, "JetStream did not answer in time"))
}

pub(crate) fn refused(bucket: &str, error: &dyn std::error::Error) -> Error {
    let text = format!("JetStream refused an operation on bucket {bucket}");
    Error::new(Reason::BrokerUnavailable, text).detail(error.to_string())
}
