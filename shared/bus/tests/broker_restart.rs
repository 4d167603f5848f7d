//! The broker goes and comes back.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod harness;

use std::time::{Duration, Instant};

use bus::{Bus, ConnectionState};
use contract::Reason;
use harness::{Broker, info, within};
use tokio::time::timeout;

async fn connected(bus: &Bus, wanted: bool) -> ConnectionState {
    let mut state = bus.state();
    let wait = state.wait_for(|state| state.is_connected() == wanted);
    *timeout(Duration::from_secs(10), wait).await.expect("the state changes within 10 s").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_fails_what_waits_and_then_everything_works_again() {
    let mut broker = Broker::start();
    let (server, client) = (broker.bus("server").await, broker.bus("client").await);
    let service = server.service(info("echo")).await.unwrap();
    let _echo = service.serve("echo", "t.echo", 4, |_, text: String| async move { Ok(text) }).await.unwrap();
    let _stuck = service
        .serve("stuck", "t.stuck", 4, |_, (): ()| std::future::pending::<Result<(), contract::Error>>())
        .await
        .unwrap();
    let mut events = client.subscribe("t.event", 4).await.unwrap();
    let before = client.state().borrow().generation();

    let waiting = tokio::spawn({
        let client = client.clone();
        async move { (client.request::<_, ()>("t.stuck", &(), within(30_000)).await, Instant::now()) }
    });
    // Something that went round proves that the request before it is out.
    client.request::<_, String>("t.echo", &"x", within(5_000)).await.unwrap();
    server.publish("t.event", &"old").await.unwrap();
    client.request::<_, String>("t.echo", &"x", within(5_000)).await.unwrap();
    let killed = Instant::now();
    broker.down();
    let (answer, ended) = waiting.await.unwrap();
    assert_eq!(answer.unwrap_err().reason, Reason::BrokerUnavailable);
    assert!(ended - killed < Duration::from_secs(5), "well inside the budget");

    connected(&client, false).await;
    let error = client.request::<_, String>("t.echo", &"x", within(5_000)).await.unwrap_err();
    assert_eq!(error.reason, Reason::BrokerUnavailable);
    harness::eventually("nothing is published", async || {
        client.publish("t.lost", &"lost").await.is_err_and(|e| e.reason == Reason::BrokerUnavailable)
    })
    .await;
    assert_eq!(client.subscribe("t.x", 1).await.err().unwrap().reason, Reason::BrokerUnavailable);

    broker.up();
    assert!(connected(&client, true).await.generation() > before);
    connected(&server, true).await;
    harness::eventually("the endpoint is registered again", async || {
        client.request::<_, String>("t.echo", &"again", within(1_000)).await.is_ok_and(|text| text == "again")
    })
    .await;
    // What was received before the reconnect is never shown; what comes after it is.
    server.publish("t.event", &"new").await.unwrap();
    let event = timeout(Duration::from_secs(5), events.next()).await.unwrap().unwrap();
    assert_eq!(event.decode::<String>().unwrap(), "new");
    assert_eq!(events.discarded(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_without_a_broker_ends_with_an_error() {
    let mut broker = Broker::start();
    broker.down();
    let mut config = broker.config();
    config.connect_timeout_ms = 600;
    let error = Bus::connect(&config, "nobody").await.err().unwrap();
    assert_eq!(error.reason, Reason::BrokerUnavailable);
    assert!(error.message.contains("600 ms"), "{error}");
}
