//! One life of a session writes, the next one reads, and the older one can spoil nothing.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod harness;

use bus::continuations::{Continuations, Tenure};
use bytes::Bytes;
use contract::{Digest, Error, Incarnation, Reason, SessionId};
use harness::{Broker, within};

const FIRST: Incarnation = Incarnation(1);

fn token() -> Digest {
    Digest::of(&[b"token"])
}

/// As large as four parts and a bit.
fn large(seed: u8) -> Vec<u8> {
    (0..1_000_000u32).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

async fn open(bus: &bus::Bus) -> Continuations {
    Continuations::open(&bus.jetstream(), within(2_000)).await.unwrap()
}

async fn begin(
    bucket: &Continuations,
    session: SessionId,
    least: Incarnation,
) -> Result<(Tenure, Option<Bytes>), Error> {
    bucket.begin(session, least, &token(), within(2_000)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_life_reads_the_newest_state_of_the_one_before() {
    let broker = Broker::start();
    let bucket = open(&broker.bus("stage0").await).await;
    let session = SessionId::random();
    let (mut first, nothing) = begin(&bucket, session, FIRST).await.unwrap();
    assert!(nothing.is_none());
    for seed in 0..5 {
        first.save(&large(seed), within(2_000)).await.unwrap();
    }
    first.save(b"small", within(2_000)).await.unwrap();
    first.save(&large(9), within(2_000)).await.unwrap();
    let (second, state) = begin(&bucket, session, FIRST).await.unwrap();
    assert_eq!((second.incarnation(), state.as_deref()), (Incarnation(2), Some(large(9).as_slice())));
    // It died before it wrote anything.
    let (third, state) = begin(&bucket, session, Incarnation(7)).await.unwrap();
    assert_eq!((third.incarnation(), state.as_deref()), (Incarnation(7), Some(large(9).as_slice())));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_life_writes_is_refused_and_read_by_nobody() {
    let broker = Broker::start();
    let bucket = open(&broker.bus("stage0").await).await;
    let session = SessionId::random();
    let (mut frozen, _) = begin(&bucket, session, FIRST).await.unwrap();
    frozen.save(b"before", within(2_000)).await.unwrap();
    let (mut successor, state) = begin(&bucket, session, FIRST).await.unwrap();
    assert_eq!(state.as_deref(), Some(b"before".as_slice()));
    for _ in 0..3 {
        assert_eq!(frozen.save(b"late", within(2_000)).await.unwrap_err().reason, Reason::Fenced);
    }
    successor.save(b"after", within(2_000)).await.unwrap();
    assert_eq!(frozen.end(within(2_000)).await.unwrap_err().reason, Reason::Fenced);
    let (_, state) = begin(&bucket, session, FIRST).await.unwrap();
    assert_eq!(state.as_deref(), Some(b"after".as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_the_token_begins_no_life() {
    let broker = Broker::start();
    let bucket = open(&broker.bus("stage0").await).await;
    let session = SessionId::random();
    let (mut owner, _) = begin(&bucket, session, FIRST).await.unwrap();
    let other = Digest::of(&[b"guess"]);
    let refused = bucket.begin(session, Incarnation(9), &other, within(2_000)).await;
    assert_eq!(refused.err().unwrap().reason, Reason::BadToken);
    owner.save(b"still mine", within(2_000)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_ended_session_nothing_is_left() {
    let broker = Broker::start();
    let bus = broker.bus("stage0").await;
    let bucket = open(&bus).await;
    let session = SessionId::random();
    let (mut life, _) = begin(&bucket, session, FIRST).await.unwrap();
    life.save(&large(1), within(2_000)).await.unwrap();
    life.save(b"small", within(2_000)).await.unwrap();
    life.end(within(2_000)).await.unwrap();
    let store = bus.jetstream().get_key_value(contract::subjects::CONTINUATION_BUCKET).await.unwrap();
    let keys = store.keys().await.unwrap();
    let left: Vec<_> = futures_util::StreamExt::collect(keys).await;
    assert!(left.is_empty(), "{left:?}");
    let (next, state) = begin(&bucket, session, FIRST).await.unwrap();
    assert_eq!((next.incarnation(), state), (FIRST, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn saving_goes_on_after_the_broker_was_away_and_the_state_survives_it() {
    let mut broker = Broker::start();
    let bus = broker.bus("stage0").await;
    let bucket = open(&bus).await;
    let session = SessionId::random();
    let (mut life, _) = begin(&bucket, session, FIRST).await.unwrap();
    life.save(b"before", within(2_000)).await.unwrap();
    broker.down();
    let mut state = bus.state();
    state.wait_for(|state| !state.is_connected()).await.unwrap();
    let away = life.save(b"lost", within(300)).await.unwrap_err();
    assert!(matches!(away.reason, Reason::BudgetSpent | Reason::BrokerUnavailable), "{away}");
    broker.up();
    state.wait_for(|state| state.is_connected()).await.unwrap();
    harness::eventually("a state is saved again", async || life.save(b"after", within(2_000)).await.is_ok())
        .await;
    let (_, state) = begin(&bucket, session, FIRST).await.unwrap();
    assert_eq!(state.as_deref(), Some(b"after".as_slice()));
}
