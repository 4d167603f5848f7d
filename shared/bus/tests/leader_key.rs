//! One leader, and epochs that only grow.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bus::leader_key::Claim;
use bus::{Endpoint, Service};
use contract::{CellId, Error, InstanceId, Reason, subjects};
use harness::{Broker, info, within};

const TTL: Duration = Duration::from_millis(600);

/// Longer than any machine keeps a leader from renewing.
const LONG: Duration = Duration::from_secs(3);

async fn take(bus: &bus::Bus) -> Result<Claim, Error> {
    take_within(bus, TTL).await
}

async fn take_within(bus: &bus::Bus, ttl: Duration) -> Result<Claim, Error> {
    Claim::take(bus, &CellId::default(), InstanceId::random(), ttl).await
}

/// A leader that is there for as long as the endpoint lives; how often it was asked is counted.
async fn present(bus: &bus::Bus) -> (Claim, (Service, Endpoint), Arc<AtomicUsize>) {
    let instance = InstanceId::random();
    let service = bus.service(info("leader")).await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let here = move |_, (): ()| {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(()))
    };
    let subject = subjects::presence(&CellId::default(), instance);
    let endpoint = service.serve("presence", &subject, 1, here).await.unwrap();
    let claim = Claim::take(bus, &CellId::default(), instance, LONG).await.unwrap();
    (claim, (service, endpoint), asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_gone_is_followed_before_its_key_falls_free() {
    let broker = Broker::start();
    let (bus, other) = (broker.bus("leader").await, broker.bus("successor").await);
    let (leader, there, asked) = present(&bus).await;
    let successor = tokio::spawn(async move { take_within(&other, Duration::from_secs(600)).await });
    harness::eventually("it is asked for", async || asked.load(Ordering::Relaxed) >= 4).await;
    assert!(!successor.is_finished(), "it is there");
    drop(there);
    let successor = tokio::time::timeout(Duration::from_secs(20), successor).await.expect("in time");
    assert!(successor.unwrap().unwrap().epoch() > leader.epoch());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_leader_keeps_its_key_and_its_epoch() {
    let broker = Broker::start();
    let bus = broker.bus("leader").await;
    let mut leader = take(&bus).await.unwrap();
    let epoch = leader.epoch();
    let second = tokio::spawn({
        let bus = bus.clone();
        async move { take_within(&bus, LONG).await }
    });
    while !second.is_finished() {
        leader.renew(within(2_000)).await.unwrap();
        tokio::time::sleep(TTL / 6).await;
    }
    assert_eq!(second.await.unwrap().unwrap_err().reason, Reason::LeaseHeld);
    leader.prove(within(2_000)).await.unwrap();
    assert_eq!(leader.epoch(), epoch);
    leader.release(within(2_000)).await.unwrap();
    let successor = take(&bus).await.unwrap();
    assert!(successor.epoch() > epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leaders_key_is_taken_over_and_the_dead_one_is_fenced() {
    let broker = Broker::start();
    let bus = broker.bus("leader").await;
    let mut frozen = take(&bus).await.unwrap();
    frozen.renew(within(2_000)).await.unwrap();
    let mut successor = take(&bus).await.unwrap();
    assert!(successor.epoch() > frozen.epoch());
    assert_eq!(frozen.prove(within(2_000)).await.unwrap_err().reason, Reason::Fenced);
    successor.prove(within(2_000)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_takers_at_once_one_wins() {
    let broker = Broker::start();
    let (a, b) = (broker.bus("a").await, broker.bus("b").await);
    let (_silent, _there, _) = present(&a).await;
    let (first, second) = tokio::join!(take_within(&a, LONG), take_within(&b, LONG));
    let refused: Vec<_> = [&first, &second].into_iter().filter_map(|r| r.as_ref().err()).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].reason, Reason::LeaseHeld);
}

#[tokio::test(flavor = "multi_thread")]
async fn epochs_grow_across_a_restart_of_the_broker_and_a_live_claim_survives_it() {
    let mut broker = Broker::start();
    let bus = broker.bus("leader").await;
    let mut leader = take(&bus).await.unwrap();
    leader.renew(within(2_000)).await.unwrap();
    broker.down();
    let mut state = bus.state();
    state.wait_for(|s| !s.is_connected()).await.unwrap();
    let away = leader.prove(within(300)).await.unwrap_err();
    assert!(matches!(away.reason, Reason::BudgetSpent | Reason::BrokerUnavailable), "{away}");
    broker.up();
    state.wait_for(|s| s.is_connected()).await.unwrap();
    harness::eventually("the claim is proven again", async || leader.prove(within(2_000)).await.is_ok())
        .await;
    let epoch = leader.epoch();
    drop(leader);
    assert!(take(&bus).await.unwrap().epoch() > epoch);
}
