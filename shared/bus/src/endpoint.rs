//! One endpoint: intake, admission, handlers bounded by their request's deadline, ADR-32 errors.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{HeaderMap, Message, service};
use bytes::Bytes;
use contract::{Deadline, Error, Reason, headers};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, debug_span};

use crate::bus::Bus;
use crate::handle::RawSubscription;
use crate::service::Endpoints;
use crate::trace;
use crate::wire::{self, Encoding};

/// Requests that wait for a handler, beyond those being handled.
const BACKLOG: usize = 64;
/// How long an endpoint that ended reads what came before.
const LAST_READ: Duration = Duration::from_millis(500);

/// What a handler knows about the request beside its body.
#[derive(Clone, Debug)]
pub struct Request {
    /// The handler is dropped then; pass it on to whatever the handler asks others.
    pub deadline: Deadline,
    pub received: Instant,
    pub subject: String,
}

/// A running endpoint; it ends when dropped. What came before is still answered.
pub struct Endpoint {
    bus: Bus,
    end: CancellationToken,
    stats: Arc<EndpointStats>,
}

impl Endpoint {
    /// Ends it; when this returns, the broker sends nothing more to it (or is away).
    pub async fn stop(self) {
        self.end.cancel();
        let _ = timeout(Duration::from_secs(1), self.stats.closed.cancelled()).await;
        let _ = self.bus.marker().await;
    }

    #[must_use]
    pub fn subject(&self) -> &str {
        &self.stats.subject
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

pub(crate) struct EndpointStats {
    pub(crate) name: String,
    pub(crate) subject: String,
    requests: AtomicU64,
    errors: AtomicU64,
    nanos: AtomicU64,
    last_error: Mutex<Option<Error>>,
    /// Cancelled once the intake has unsubscribed.
    closed: CancellationToken,
}

impl EndpointStats {
    pub(crate) fn new(name: &str, subject: &str) -> Self {
        Self {
            name: name.to_owned(),
            subject: subject.to_owned(),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            last_error: Mutex::default(),
            closed: CancellationToken::new(),
        }
    }

    fn record(&self, took: Duration, error: Option<&Error>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(error) = error {
            self.errors.fetch_add(1, Ordering::Relaxed);
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        }
    }

    pub(crate) fn snapshot(&self) -> service::endpoint::Stats {
        let requests = self.requests.load(Ordering::Relaxed);
        let total = Duration::from_nanos(self.nanos.load(Ordering::Relaxed));
        let last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        service::endpoint::Stats {
            name: self.name.clone(),
            subject: self.subject.clone(),
            queue_group: String::new(),
            requests: usize::try_from(requests).unwrap_or(usize::MAX),
            errors: usize::try_from(self.errors.load(Ordering::Relaxed)).unwrap_or(usize::MAX),
            processing_time: total,
            average_processing_time: total / u32::try_from(requests.max(1)).unwrap_or(u32::MAX),
            last_error: last.map(|e| service::error::Error {
                status: e.to_string(),
                code: usize::from(e.class().http_status()),
            }),
            data: None,
        }
    }
}

pub(crate) struct Limits {
    pub(crate) concurrency: usize,
    pub(crate) encoding: Encoding,
}

type Answer = Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send>>;
pub(crate) type Handler = Arc<dyn Fn(Request, Bytes) -> Answer + Send + Sync>;

/// A handler of bytes out of a handler of messages.
pub(crate) fn erase<Q, R, F, Fut>(encoding: Encoding, handler: F) -> Handler
where
    Q: DeserializeOwned + Send + 'static,
    R: Serialize + Send + 'static,
    F: Fn(Request, Q) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Error>> + Send + 'static,
{
    Arc::new(move |request, body| match encoding.decode::<Q>(&body) {
        Ok(query) => {
            let answer = handler(request, query);
            Box::pin(async move { encoding.encode(&answer.await?) })
        }
        Err(error) => Box::pin(std::future::ready(Err(error))),
    })
}

/// What intake hands to dispatch.
struct Arrived {
    message: Message,
    reply: String,
    received: Instant,
    generation: u64,
}

pub(crate) async fn start(
    bus: Bus,
    endpoints: Arc<Endpoints>,
    stats: Arc<EndpointStats>,
    limits: Limits,
    handler: Handler,
    end: CancellationToken,
) -> Result<Endpoint, Error> {
    let raw = bus.subscribe_raw(&stats.subject).await?;
    let id = endpoints.add(Arc::clone(&stats));
    let (queue, arrived) = mpsc::channel(BACKLOG);
    let answerer = Answerer { bus: bus.clone(), stats: Arc::clone(&stats), encoding: limits.encoding };
    tokio::spawn(dispatch(arrived, answerer.clone(), limits.concurrency, handler));
    let ended = end.clone();
    tokio::spawn(async move {
        intake(raw, queue, answerer.clone(), ended).await;
        endpoints.remove(id);
        answerer.stats.closed.cancel();
    });
    Ok(Endpoint { bus, end, stats })
}

/// Reads the subscription without ever waiting for a handler, so that each message is stamped when it arrives. What had reached
/// this process before the end is still answered.
async fn intake(
    mut raw: RawSubscription,
    queue: mpsc::Sender<Arrived>,
    answerer: Answerer,
    end: CancellationToken,
) {
    loop {
        let message = tokio::select! {
            biased;
            () = end.cancelled() => break,
            message = raw.next() => message,
        };
        let Some(message) = message else { return };
        take_in(message, &queue, &answerer).await;
    }
    let give_up = Instant::now() + LAST_READ;
    raw.drain(LAST_READ).await;
    while Instant::now() < give_up
        && let Ok(Some(message)) = timeout_at(give_up.into(), raw.next()).await
    {
        take_in(message, &queue, &answerer).await;
    }
}

async fn take_in(mut message: Message, queue: &mpsc::Sender<Arrived>, answerer: &Answerer) {
    let Some(reply) = message.reply.take() else {
        debug!(subject = %message.subject, "a request without a reply subject was ignored");
        return;
    };
    let generation = answerer.bus.link().generation();
    let arrived = Arrived { message, reply: reply.to_string(), received: Instant::now(), generation };
    if let Err(refused) = queue.try_send(arrived) {
        let arrived = refused.into_inner();
        let message = format!("{BACKLOG} requests already wait for {}", answerer.stats.subject);
        let error = Error::new(Reason::QueueFull, message);
        answerer.answer(&arrived.reply, Duration::ZERO, Err(error)).await;
    }
}

/// Starts handlers in order of arrival, each with a permit, after the last check that the work is still wanted.
async fn dispatch(
    mut queue: mpsc::Receiver<Arrived>,
    answerer: Answerer,
    concurrency: usize,
    handler: Handler,
) {
    let permits = Arc::new(Semaphore::new(concurrency));
    while let Some(arrived) = queue.recv().await {
        let map = arrived.message.headers.as_ref();
        let admitted = match (wire::check_version(map), wire::deadline(map, arrived.received)) {
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(()), Ok(deadline)) => {
                let permit = timeout_at(deadline.at().into(), Arc::clone(&permits).acquire_owned()).await;
                match permit {
                    Ok(Ok(permit)) if !deadline.expired(Instant::now()) => Ok((permit, deadline)),
                    _ => Err(expired_before_start(&arrived)),
                }
            }
        };
        let admitted = admitted.and_then(|admitted| match answerer.bus.link().fresh(arrived.generation) {
            true => Ok(admitted),
            false => Err(answerer.bus.link().stale_error()),
        });
        match admitted {
            Err(error) => answerer.answer(&arrived.reply, Duration::ZERO, Err(error)).await,
            Ok((permit, deadline)) => {
                let span = debug_span!("request", subject = %arrived.message.subject);
                let (answerer, handler) = (answerer.clone(), Arc::clone(&handler));
                let handled = async move {
                    handle(arrived, deadline, &answerer, &handler).await;
                    drop(permit);
                };
                tokio::spawn(handled.instrument(span));
            }
        }
    }
}

fn expired_before_start(arrived: &Arrived) -> Error {
    let waited = arrived.received.elapsed().as_millis();
    let message =
        format!("the budget was spent before the request was started ({waited} ms after it arrived)");
    Error::new(Reason::BudgetSpent, message)
}

async fn handle(arrived: Arrived, deadline: Deadline, answerer: &Answerer, handler: &Handler) {
    let started = Instant::now();
    let subject = arrived.message.subject.to_string();
    let traceparent = wire::header(arrived.message.headers.as_ref(), headers::TRACEPARENT).map(str::to_owned);
    let request = Request { deadline, received: arrived.received, subject };
    let work = trace::scope(traceparent, async { handler(request, arrived.message.payload).await });
    let answer = timeout_at(deadline.at().into(), work).await.unwrap_or_else(|_| {
        let ms = deadline.left(arrived.received).as_millis();
        Err(Error::new(Reason::BudgetSpent, format!("the request was not finished within its {ms} ms")))
    });
    answerer.answer(&arrived.reply, started.elapsed(), answer).await;
}

#[derive(Clone)]
struct Answerer {
    bus: Bus,
    stats: Arc<EndpointStats>,
    encoding: Encoding,
}

impl Answerer {
    async fn answer(&self, reply: &str, took: Duration, answer: Result<Bytes, Error>) {
        self.stats.record(took, answer.as_ref().err());
        let (map, body) = match answer {
            Ok(body) => (HeaderMap::new(), body),
            Err(error) => self.encoding.error_reply(&error),
        };
        // Whoever asked sees its own end of the connection break, or its deadline pass.
        if let Err(error) = self.bus.send(reply, body, map).await {
            debug!(%error, subject = self.stats.subject, "an answer was not sent");
        }
    }
}
