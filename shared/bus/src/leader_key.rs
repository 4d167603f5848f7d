//! The leader's claim on its cell: the JetStream key `leader.{cell}`, taken by compare-and-set and renewed.
//!
//! The mesh epoch is the revision at which the key was taken. Revisions only grow, across restarts of the broker, so
//! epochs do. A renewal writes a new revision and leaves the epoch as it is. A key whose revision does not change for
//! its TTL, as seen by whoever wants it, belongs to a dead leader and can be taken over; before that if the broker has no
//! connection of its leader.

use std::time::{Duration, Instant};

use async_nats::jetstream::kv::{Config, CreateErrorKind, Entry, Operation, Store, UpdateErrorKind};
use async_nats::jetstream::stream::StorageType;
use bytes::Bytes;
use contract::{Budget, CellId, Deadline, Error, InstanceId, MeshEpoch, Reason, codec, subjects};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::bucket::{self, bounded};
use crate::bus::Bus;
use crate::connect::MAX_RECONNECT_DELAY;
use crate::presence::{self, Presence};
use crate::wire;

/// Bound on one JetStream call while taking.
const CALL: Budget = Budget::from_secs(2);
/// How often the owner of a contested key is looked at within a TTL.
const LOOKS: u32 = 10;
/// A leader of which the broker knows nothing for this long is gone: it would have connected again.
const ABSENCE: Duration = MAX_RECONNECT_DELAY.saturating_mul(2);

/// The value of the key.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Value {
    instance: InstanceId,
    /// Absent in the write that takes the key: its revision is only known afterwards.
    epoch: Option<MeshEpoch>,
}

/// A held key. It does not renew itself: call [`Self::renew`] at least every third of the TTL. Dropping it without
/// [`Self::release`] makes a successor wait for the TTL, if its process goes on saying that it is there.
#[derive(Debug)]
pub struct Claim {
    store: Store,
    key: String,
    instance: InstanceId,
    epoch: MeshEpoch,
    revision: u64,
}

impl Claim {
    /// Takes the key of `cell` for `instance`. Where someone holds it, watches it for `ttl`: it is taken over if
    /// nothing renewed it meanwhile, and sooner if its holder is not there any more ([`presence`]). Ends within `ttl` and
    /// a few broker round trips.
    ///
    /// # Errors
    /// `lease_held` as soon as a renewal by a live leader is seen, or when another taker was faster;
    /// `broker_unavailable` when JetStream does not answer.
    pub async fn take(bus: &Bus, cell: &CellId, instance: InstanceId, ttl: Duration) -> Result<Self, Error> {
        let store = bounded(call_deadline(), open_bucket(&bus.jetstream())).await??;
        let key = subjects::leader_key(cell);
        let first = read(&store, &key).await?;
        let Some(held) = first.filter(|entry| entry.operation == Operation::Put) else {
            return Self::create(store, key, instance).await;
        };
        let (give_up, between) = (Instant::now() + ttl, (ttl / LOOKS).min(ABSENCE / 2));
        let mut missing: Option<Instant> = None;
        while Instant::now() < give_up && missing.is_none_or(|since| since.elapsed() < ABSENCE) {
            missing = match holder_is_there(bus, cell, &held, between).await {
                Presence::Gone => missing.or_else(|| Some(Instant::now())),
                Presence::Here | Presence::Unknown => None,
            };
            sleep(between.min(wire::left(Deadline::after(give_up, Budget::from_millis(0))))).await;
            match read(&store, &key).await? {
                Some(entry) if entry.operation == Operation::Put && entry.revision == held.revision => {}
                Some(entry) if entry.operation == Operation::Put => return Err(lease_held(&key, &entry)),
                _ => return Self::create(store, key, instance).await,
            }
        }
        let value = encode(instance, None)?;
        let taken = bounded(call_deadline(), store.update(&key, value, held.revision)).await?;
        match taken {
            Ok(revision) => Ok(Self::at(store, key, instance, revision)),
            Err(e) if e.kind() == UpdateErrorKind::WrongLastRevision => Err(lease_held(&key, &held)),
            Err(e) => Err(broker(&e)),
        }
    }

    async fn create(store: Store, key: String, instance: InstanceId) -> Result<Self, Error> {
        let created = bounded(call_deadline(), store.create(&key, encode(instance, None)?)).await?;
        match created {
            Ok(revision) => Ok(Self::at(store, key, instance, revision)),
            Err(e) if e.kind() == CreateErrorKind::AlreadyExists => {
                Err(Error::new(Reason::LeaseHeld, format!("{key} was taken by another leader just now")))
            }
            Err(e) => Err(broker(&e)),
        }
    }

    fn at(store: Store, key: String, instance: InstanceId, revision: u64) -> Self {
        Self { store, key, instance, epoch: MeshEpoch(revision), revision }
    }

    /// The revision at which the key was taken; the same for as long as the claim is held.
    #[must_use]
    pub fn epoch(&self) -> MeshEpoch {
        self.epoch
    }

    /// Writes the claim anew, on the condition that nobody else wrote since.
    ///
    /// # Errors
    /// `fenced`: the key is someone else's now, and this leader is history. `broker_unavailable` or `budget_spent`:
    /// nothing is known; try again.
    pub async fn renew(&mut self, deadline: Deadline) -> Result<(), Error> {
        loop {
            let value = encode(self.instance, Some(self.epoch))?;
            match bounded(deadline, self.store.update(&self.key, value, self.revision)).await? {
                Ok(revision) => {
                    self.revision = revision;
                    return Ok(());
                }
                Err(e) if e.kind() == UpdateErrorKind::WrongLastRevision => self.adopt(deadline).await?,
                Err(e) => return Err(broker(&e)),
            }
        }
    }

    /// A write of ours whose answer was lost also moved the revision: if the key still says that it is ours, go on
    /// from there.
    async fn adopt(&mut self, deadline: Deadline) -> Result<(), Error> {
        let entry = bounded(deadline, self.store.entry(&self.key)).await?.map_err(|e| broker(&e))?;
        let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else {
            return Err(self.fenced("nobody"));
        };
        let value: Value = codec::decode(&entry.value)?;
        let ours = value.instance == self.instance
            && (value.epoch == Some(self.epoch) || MeshEpoch(entry.revision) == self.epoch);
        if !ours {
            return Err(self.fenced(&value.instance.to_string()));
        }
        self.revision = entry.revision;
        Ok(())
    }

    /// Proves that the key is still held, by a compare-and-set write: no cache or lagging replica can answer it.
    ///
    /// # Errors
    /// As [`Self::renew`].
    pub async fn prove(&mut self, deadline: Deadline) -> Result<(), Error> {
        self.renew(deadline).await
    }

    /// Gives the key up, so that a successor need not wait for the TTL.
    ///
    /// # Errors
    /// `broker_unavailable` or `budget_spent`: the key then falls free by its TTL.
    pub async fn release(self, deadline: Deadline) -> Result<(), Error> {
        let deleted = self.store.delete_expect_revision(&self.key, Some(self.revision));
        bounded(deadline, deleted).await?.map_err(|e| broker(&e))
    }

    fn fenced(&self, holder: &str) -> Error {
        let (key, epoch) = (&self.key, self.epoch);
        Error::new(Reason::Fenced, format!("{key} of mesh epoch {epoch} is held by {holder} now"))
    }
}

async fn open_bucket(js: &async_nats::jetstream::Context) -> Result<Store, Error> {
    let config = Config {
        bucket: subjects::LEADER_BUCKET.to_owned(),
        description: "who leads each cell; the revision is the mesh epoch".to_owned(),
        history: 1,
        max_value_size: 1024,
        storage: StorageType::File,
        ..Config::default()
    };
    bucket::open(js, config).await
}

async fn read(store: &Store, key: &str) -> Result<Option<Entry>, Error> {
    bounded(call_deadline(), store.entry(key)).await?.map_err(|e| broker(&e))
}

async fn holder_is_there(bus: &Bus, cell: &CellId, held: &Entry, wait: Duration) -> Presence {
    match codec::decode::<Value>(&held.value) {
        Ok(value) => {
            let deadline = Deadline::after(Instant::now(), Budget::from(wait));
            presence::ask(bus, cell, value.instance, deadline).await
        }
        Err(_) => Presence::Unknown,
    }
}

fn encode(instance: InstanceId, epoch: Option<MeshEpoch>) -> Result<Bytes, Error> {
    codec::encode(&Value { instance, epoch }).map(Bytes::from)
}

fn lease_held(key: &str, entry: &Entry) -> Error {
    let holder =
        codec::decode::<Value>(&entry.value).map_or_else(|_| "?".to_owned(), |v| v.instance.to_string());
    Error::new(Reason::LeaseHeld, format!("{key} is held by {holder}, which is alive"))
}

fn call_deadline() -> Deadline {
    Deadline::after(Instant::now(), CALL)
}

fn broker(error: &dyn std::error::Error) -> Error {
    bucket::refused(subjects::LEADER_BUCKET, error)
}
