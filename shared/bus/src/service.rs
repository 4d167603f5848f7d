//! A service as ADR-32 means it: discoverable by anyone, with endpoints that come and go. Kinemesh's endpoints are
//! singletons, so they join no queue group; the client library's own service API always joins one.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use contract::{Error, Reason};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::bus::Bus;
use crate::discovery::{self, Card};
use crate::endpoint::{self, Endpoint, EndpointStats, Request};
use crate::wire::Encoding;

/// Who a service says it is.
#[derive(Clone, Debug, Default)]
pub struct ServiceInfo {
    /// `[A-Za-z0-9_-]+`
    pub name: String,
    /// Semantic version.
    pub version: String,
    pub description: String,
    pub metadata: HashMap<String, String>,
}

/// A registered service. Clones are the same service; it ends with [`Self::stop`] or when the last clone is dropped,
/// and its endpoints with it.
#[derive(Clone)]
pub struct Service {
    bus: Bus,
    card: Arc<Card>,
    endpoints: Arc<Endpoints>,
    end: CancellationToken,
    _end_with_last_clone: Arc<DropGuard>,
}

/// The endpoints that exist now, by an id of their own: two may share a name for a moment.
#[derive(Default)]
pub(crate) struct Endpoints(Mutex<BTreeMap<Uuid, Arc<EndpointStats>>>);

impl Endpoints {
    pub(crate) fn list(&self) -> Vec<Arc<EndpointStats>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn add(&self, stats: Arc<EndpointStats>) -> Uuid {
        let id = Uuid::new_v4();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, stats);
        id
    }

    pub(crate) fn remove(&self, id: Uuid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

impl Service {
    pub(crate) async fn start(bus: Bus, info: ServiceInfo) -> Result<Self, Error> {
        check_name("service name", &info.name)?;
        check_version(&info.version)?;
        let end = CancellationToken::new();
        let card = Arc::new(Card::new(info));
        let endpoints = Arc::new(Endpoints::default());
        discovery::start(&bus, Arc::clone(&card), Arc::clone(&endpoints), end.clone()).await?;
        let guard = Arc::new(end.clone().drop_guard());
        Ok(Self { bus, card, endpoints, end, _end_with_last_clone: guard })
    }

    /// The id that discovery shows.
    #[must_use]
    pub fn id(&self) -> &str {
        self.card.id()
    }

    /// Answers requests on `subject`, MessagePack in and out, with at most `concurrency` handlers at a time and in
    /// order of arrival. Before a handler starts, a request is refused as `unsupported_version`, `budget_spent`,
    /// `broker_unavailable` (it is from before a reconnect or stall), `queue_full` or `malformed`; a handler is dropped
    /// at the request's deadline and the caller gets `budget_spent`. A request without a budget has
    /// [`crate::DEFAULT_BUDGET`]. When this returns, the broker knows the endpoint.
    ///
    /// # Errors
    /// `permission_denied`, `broker_unavailable`, `bad_field`.
    pub async fn serve<Q, R, F, Fut>(
        &self,
        name: &str,
        subject: &str,
        concurrency: usize,
        handler: F,
    ) -> Result<Endpoint, Error>
    where
        Q: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(Request, Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Error>> + Send + 'static,
    {
        self.add(name, subject, concurrency, Encoding::MessagePack, handler).await
    }

    /// The same with JSON in and out, for `ops.*`: an empty body is `null` (or `{}` where null does not fit), and
    /// errors have a JSON body.
    ///
    /// # Errors
    /// As [`Self::serve`].
    pub async fn serve_json<Q, R, F, Fut>(
        &self,
        name: &str,
        subject: &str,
        concurrency: usize,
        handler: F,
    ) -> Result<Endpoint, Error>
    where
        Q: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(Request, Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Error>> + Send + 'static,
    {
        self.add(name, subject, concurrency, Encoding::Json, handler).await
    }

    async fn add<Q, R, F, Fut>(
        &self,
        name: &str,
        subject: &str,
        concurrency: usize,
        encoding: Encoding,
        handler: F,
    ) -> Result<Endpoint, Error>
    where
        Q: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(Request, Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Error>> + Send + 'static,
    {
        check_name("endpoint name", name)?;
        let stats = Arc::new(EndpointStats::new(name, subject));
        let handler = endpoint::erase(encoding, handler);
        endpoint::start(
            self.bus.clone(),
            Arc::clone(&self.endpoints),
            stats,
            endpoint::Limits { concurrency: concurrency.max(1), encoding },
            handler,
            self.end.child_token(),
        )
        .await
    }

    /// Ends the service and all its endpoints; when this returns the broker knows (or is away). What came before is
    /// still answered.
    pub async fn stop(self) {
        self.end.cancel();
        // The tasks queue their unsubscriptions before the marker only if they run first; give them the chance.
        tokio::task::yield_now().await;
        let _ = self.bus.marker().await;
    }
}

fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || !name.chars().all(allowed) {
        let message = format!("{what} {name:?}: A-Z, a-z, 0-9, '_' and '-' are allowed");
        return Err(Error::new(Reason::BadField, message));
    }
    Ok(())
}

fn check_version(version: &str) -> Result<(), Error> {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<_> = core.split('.').collect();
    if numbers.len() != 3 || numbers.iter().any(|n| n.parse::<u64>().is_err()) {
        let message = format!("service version {version:?}: a semantic version is expected, such as 0.1.0");
        return Err(Error::new(Reason::BadField, message));
    }
    Ok(())
}
