//! `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`, for all services, for one name, and for one instance (ADR-32).

use std::sync::Arc;
use std::time::Duration;

use async_nats::service::{Info, PingResponse, Stats, endpoint};
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use contract::Error;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use uuid::Uuid;

use crate::bus::Bus;
use crate::handle::RawSubscription;
use crate::service::{Endpoints, ServiceInfo};

/// Discovery requests that may wait; more are not answered.
const BACKLOG: usize = 64;

/// What discovery says about one service instance.
pub(crate) struct Card {
    info: ServiceInfo,
    id: String,
    started: async_nats::datetime::DateTime,
}

#[derive(Clone, Copy)]
enum Verb {
    Ping,
    Info,
    Stats,
}

impl Verb {
    const ALL: [Self; 3] = [Self::Ping, Self::Info, Self::Stats];

    fn token(self) -> &'static str {
        match self {
            Self::Ping => "PING",
            Self::Info => "INFO",
            Self::Stats => "STATS",
        }
    }

    fn kind(self) -> String {
        format!("io.nats.micro.v1.{}_response", self.token().to_ascii_lowercase())
    }
}

impl Card {
    pub(crate) fn new(info: ServiceInfo) -> Self {
        // ADR-32 wants the wall-clock time of the start, for people to read.
        Self { info, id: Uuid::new_v4().simple().to_string(), started: async_nats::datetime::now() }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    fn answer(&self, verb: Verb, endpoints: &Endpoints) -> serde_json::Result<Vec<u8>> {
        let (kind, name, id) = (verb.kind(), self.info.name.clone(), self.id.clone());
        let (version, metadata) = (self.info.version.clone(), self.info.metadata.clone());
        match verb {
            Verb::Ping => serde_json::to_vec(&PingResponse { kind, name, id, version, metadata }),
            Verb::Info => {
                let description = self.info.description.clone();
                let endpoints = endpoints
                    .list()
                    .iter()
                    .map(|e| endpoint::Info {
                        name: e.name.clone(),
                        subject: e.subject.clone(),
                        queue_group: String::new(),
                        metadata: Default::default(),
                    })
                    .collect();
                serde_json::to_vec(&Info { kind, name, id, description, version, metadata, endpoints })
            }
            Verb::Stats => {
                let endpoints = endpoints.list().iter().map(|e| e.snapshot()).collect();
                serde_json::to_vec(&Stats { kind, name, id, version, started: self.started, endpoints })
            }
        }
    }
}

/// Subscribes, and answers from a task of its own until `end`.
pub(crate) async fn start(
    bus: &Bus,
    card: Arc<Card>,
    endpoints: Arc<Endpoints>,
    end: CancellationToken,
) -> Result<(), Error> {
    let (queue, mut requests) = mpsc::channel(BACKLOG);
    let subjects = Verb::ALL.map(|verb| {
        let all = format!("$SRV.{}", verb.token());
        let named = format!("{all}.{}", card.info.name);
        let one = format!("{named}.{}", card.id);
        [all, named, one]
    });
    let subscriptions = bus.subscribe_each(subjects.as_flattened()).await?;
    let verbs = Verb::ALL.iter().flat_map(|verb| [*verb; 3]);
    for (verb, subscription) in verbs.zip(subscriptions) {
        tokio::spawn(collect(verb, subscription, queue.clone(), end.clone()));
    }
    // The task holds no queue end: it ends when the collectors do.
    drop(queue);
    let bus = bus.clone();
    tokio::spawn(async move {
        while let Some((verb, message)) = requests.recv().await {
            let Some(reply) = message.reply else { continue };
            let Ok(body) = card.answer(verb, &endpoints) else { continue };
            if let Err(error) = bus.send(&reply, Bytes::from(body), HeaderMap::new()).await {
                debug!(%error, "a discovery request was not answered");
            }
        }
    });
    Ok(())
}

async fn collect(
    verb: Verb,
    mut subscription: RawSubscription,
    queue: mpsc::Sender<(Verb, Message)>,
    end: CancellationToken,
) {
    loop {
        tokio::select! {
            () = end.cancelled() => return subscription.unsubscribe(Duration::from_millis(100)).await,
            message = subscription.next() => match message {
                // A full queue means a flood of discovery: whoever asks again will be answered.
                Some(message) => drop(queue.try_send((verb, message))),
                None => return,
            },
        }
    }
}
