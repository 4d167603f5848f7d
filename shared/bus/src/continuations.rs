//! Where sessions keep what they need to go on elsewhere.
//!
//! A state may be larger than a message, so it lies in parts under keys of its own; one small key, the head, says which
//! life of the session may write and which parts are its newest state. The head alone is written by compare-and-set:
//! whoever makes the next life raises the incarnation in it, and from then on nothing that an older life writes is read.
//! An object store would cut values as well, but cannot compare and set.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{Config, CreateErrorKind, Operation, Store, UpdateErrorKind};
use async_nats::jetstream::stream::StorageType;
use bytes::Bytes;
use contract::continuation::{ContinuationHead, LIFETIME_S, MAX_BYTES, StatePlace};
use contract::{Deadline, Digest, Error, Incarnation, Reason, SessionId, codec, subjects};

use crate::bucket::{self, bounded};

/// Bytes of a part: a message with room for its headers.
const PART: usize = 240 * 1024;
/// All states of all sessions together.
const BUCKET_BYTES: i64 = 256 * 1024 * 1024;
/// Others that write a head between our look at it and our write: more than a few means that something is wrong.
const ATTEMPTS: usize = 5;

/// The bucket; clones share it.
#[derive(Clone, Debug)]
pub struct Continuations(Store);

/// The right of one life to write its session's state.
#[derive(Debug)]
pub struct Tenure {
    store: Store,
    session: SessionId,
    head: ContinuationHead,
    /// Of the head as it was last seen; none if it was gone.
    revision: Option<u64>,
    /// A write went unanswered: which set is in force is only known after another look.
    in_doubt: bool,
    /// Parts that lie in each of the two sets.
    written: [u32; 2],
}

impl Continuations {
    /// # Errors
    /// `broker_unavailable` or `budget_spent`.
    pub async fn open(js: &Context, deadline: Deadline) -> Result<Self, Error> {
        let config = Config {
            bucket: subjects::CONTINUATION_BUCKET.to_owned(),
            description: "what sessions need to go on elsewhere".to_owned(),
            history: 1,
            max_age: Duration::from_secs(LIFETIME_S),
            max_bytes: BUCKET_BYTES,
            storage: StorageType::File,
            ..Config::default()
        };
        bounded(deadline, bucket::open(js, config)).await?.map(Self)
    }

    /// Begins a life of a session, of `least` incarnation or one above what is on record, and returns the state that an
    /// earlier life left, if there is one.
    ///
    /// # Errors
    /// `bad_token` if the session on record has another resume token. `conflict: stale_epoch` if others keep writing it.
    /// `broker_unavailable` or `budget_spent`: nothing is known.
    pub async fn begin(
        &self,
        session: SessionId,
        least: Incarnation,
        resume: &Digest,
        deadline: Deadline,
    ) -> Result<(Tenure, Option<Bytes>), Error> {
        for _ in 0..ATTEMPTS {
            let found = self.head(session, deadline).await?;
            if found.as_ref().is_some_and(|(head, _)| head.resume != *resume) {
                return Err(Error::new(
                    Reason::BadToken,
                    format!("session {session} has another resume token"),
                ));
            }
            let state = match found.as_ref().and_then(|(head, _)| head.state.as_ref()) {
                Some(place) => self.read(session, place, deadline).await?,
                None => None,
            };
            let above = found.as_ref().map_or(least, |(head, _)| head.incarnation.next());
            let head = ContinuationHead {
                incarnation: least.max(above),
                resume: resume.clone(),
                state: state.as_ref().and(found.as_ref()).and_then(|(head, _)| head.state.clone()),
            };
            let revision = found.map(|(_, revision)| revision);
            if let Some(revision) = self.write(session, &head, revision, deadline).await? {
                let (store, revision) = (self.0.clone(), Some(revision));
                let tenure = Tenure { store, session, head, revision, in_doubt: false, written: [0; 2] };
                return Ok((tenure, state));
            }
        }
        Err(Error::new(Reason::StaleEpoch, format!("session {session} is being written by others")))
    }

    async fn head(
        &self,
        session: SessionId,
        deadline: Deadline,
    ) -> Result<Option<(ContinuationHead, u64)>, Error> {
        let key = subjects::continuation_head(session);
        let entry = bounded(deadline, self.0.entry(key)).await?.map_err(|e| refused(&e))?;
        let live = entry.filter(|entry| entry.operation == Operation::Put);
        live.map(|entry| Ok((codec::decode(&entry.value)?, entry.revision))).transpose()
    }

    /// The new revision; `None` if somebody else wrote meanwhile.
    async fn write(
        &self,
        session: SessionId,
        head: &ContinuationHead,
        revision: Option<u64>,
        deadline: Deadline,
    ) -> Result<Option<u64>, Error> {
        let key = subjects::continuation_head(session);
        let value = Bytes::from(codec::encode(head)?);
        let Some(revision) = revision else {
            return match bounded(deadline, self.0.create(&key, value)).await? {
                Ok(revision) => Ok(Some(revision)),
                Err(e) if e.kind() == CreateErrorKind::AlreadyExists => Ok(None),
                Err(e) => Err(refused(&e)),
            };
        };
        match bounded(deadline, self.0.update(&key, value, revision)).await? {
            Ok(revision) => Ok(Some(revision)),
            Err(e) if e.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(e) => Err(refused(&e)),
        }
    }

    /// `None` if the parts are gone, or are not what the head says.
    async fn read(
        &self,
        session: SessionId,
        place: &StatePlace,
        deadline: Deadline,
    ) -> Result<Option<Bytes>, Error> {
        let mut state = Vec::new();
        for part in 0..place.parts {
            let key = subjects::continuation_part(session, place.incarnation, place.set, part);
            let value = bounded(deadline, self.0.get(key)).await?.map_err(|e| refused(&e))?;
            let Some(value) = value.filter(|value| state.len() + value.len() <= MAX_BYTES) else {
                return Ok(None);
            };
            state.extend_from_slice(&value);
        }
        Ok((Digest::of(&[&state]) == place.digest).then(|| state.into()))
    }
}

impl Tenure {
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.head.incarnation
    }

    /// Replaces the session's state: first the parts, in the set that is not in force, then the head.
    ///
    /// # Errors
    /// `fenced`: a later life has begun, and nothing that this one writes is read any more. `payload_too_large`.
    /// `broker_unavailable` or `budget_spent`: the state may or may not be stored; save the next one.
    pub async fn save(&mut self, state: &[u8], deadline: Deadline) -> Result<(), Error> {
        if state.len() > MAX_BYTES {
            let text = format!("a state of {} bytes: {MAX_BYTES} are allowed", state.len());
            return Err(Error::new(Reason::PayloadTooLarge, text));
        }
        if self.in_doubt {
            self.look(deadline).await?;
        }
        let incarnation = self.head.incarnation;
        let own = self.head.state.as_ref().filter(|place| place.incarnation == incarnation);
        let set = own.map_or(0, |place| 1 - place.set.min(1));
        let mut parts = 0;
        for piece in state.chunks(PART) {
            let key = subjects::continuation_part(self.session, incarnation, set, parts);
            let put = self.store.put(&key, Bytes::copy_from_slice(piece));
            bounded(deadline, put).await?.map_err(|e| refused(&e))?;
            parts += 1;
        }
        let written = &mut self.written[usize::from(set)];
        *written = parts.max(*written);
        self.write(Some(StatePlace { incarnation, set, parts, digest: Digest::of(&[state]) }), deadline).await
    }

    async fn write(&mut self, state: Option<StatePlace>, deadline: Deadline) -> Result<(), Error> {
        let bucket = Continuations(self.store.clone());
        let head = ContinuationHead { state, ..self.head.clone() };
        for _ in 0..ATTEMPTS {
            self.in_doubt = true;
            if let Some(revision) = bucket.write(self.session, &head, self.revision, deadline).await? {
                (self.head, self.revision, self.in_doubt) = (head, Some(revision), false);
                return Ok(());
            }
            self.look(deadline).await?;
        }
        Err(Error::new(Reason::StaleEpoch, format!("session {} is being written by others", self.session)))
    }

    /// Learns where the head stands. A write of ours whose answer was lost moved it; so does a later life.
    async fn look(&mut self, deadline: Deadline) -> Result<(), Error> {
        let found = Continuations(self.store.clone()).head(self.session, deadline).await?;
        let (session, own) = (self.session, self.head.incarnation);
        match found {
            Some((head, revision)) if head.incarnation == own => {
                (self.head, self.revision) = (head, Some(revision));
            }
            Some(_) => {
                let text = format!("life {own} of session {session} is over: a later one began");
                return Err(Error::new(Reason::Fenced, text));
            }
            // It outlived the bucket's limit.
            None => (self.head.state, self.revision) = (None, None),
        }
        self.in_doubt = false;
        Ok(())
    }

    /// The session has ended: removes what this life wrote. What earlier lives left falls to the bucket's own limit.
    ///
    /// # Errors
    /// `fenced` if the session goes on in a later life: then its head stays. `broker_unavailable` or `budget_spent`.
    pub async fn end(mut self, deadline: Deadline) -> Result<(), Error> {
        // A write proves that the head is still ours.
        self.write(None, deadline).await?;
        let key = subjects::continuation_head(self.session);
        bounded(deadline, self.store.purge_expect_revision(&key, self.revision))
            .await?
            .map_err(|e| refused(&e))?;
        for (set, parts) in (0u8..).zip(self.written) {
            for part in 0..parts {
                let key = subjects::continuation_part(self.session, self.head.incarnation, set, part);
                bounded(deadline, self.store.purge(&key)).await?.map_err(|e| refused(&e))?;
            }
        }
        Ok(())
    }
}

fn refused(error: &dyn std::error::Error) -> Error {
    bucket::refused(subjects::CONTINUATION_BUCKET, error)
}
