//! Deadlines and errors of requests, against a real broker.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bus::Request;
use bus::presence::{self, Presence};
use contract::{CellId, Error, InstanceId, Reason, codec};
use futures_util::StreamExt;
use harness::{Broker, info, within};
use tokio::sync::{Notify, Semaphore};

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_arrives_shrunk_and_is_passed_on_smaller() {
    let broker = Broker::start();
    let bus = broker.bus("service").await;
    let service = bus.service(info("chain")).await.unwrap();
    let left = |request: &Request| request.deadline.left(std::time::Instant::now()).as_millis();
    let _end = service.serve("end", "t.end", 1, move |r, (): ()| async move { Ok(left(&r)) }).await.unwrap();
    let inner = bus.clone();
    let _front = service
        .serve("front", "t.front", 1, move |request, (): ()| {
            let bus = inner.clone();
            async move {
                let here = left(&request);
                let there: u64 = bus.request("t.end", &(), request.deadline).await?;
                Ok((here, there))
            }
        })
        .await
        .unwrap();
    let (front, end): (u64, u64) = bus.request("t.front", &(), within(3_000)).await.unwrap();
    assert!(front <= 3_000 && end <= front && end > 0, "front {front} ms, end {end} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_there_as_long_as_its_connection_is() {
    let broker = Broker::start();
    let (asker, cell, instance) = (broker.bus("asker").await, CellId::default(), InstanceId::random());
    let ask = async |ms| presence::ask(&asker, &cell, instance, within(ms)).await;
    assert_eq!(ask(3_000).await, Presence::Gone);
    let bus = broker.bus("process").await;
    let service = bus.service(info("process")).await.unwrap();
    let endpoint = presence::serve(&service, &cell, instance).await.unwrap();
    assert_eq!(ask(3_000).await, Presence::Here);
    assert_eq!(ask(0).await, Presence::Unknown);
    drop((endpoint, service, bus));
    harness::eventually("the connection closes", async || ask(3_000).await == Presence::Gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_work_is_refused_before_its_handler_starts() {
    let broker = Broker::start();
    let bus = broker.bus("service").await;
    let service = bus.service(info("slow")).await.unwrap();
    let (started, busy, go_on) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let _endpoint = service
        .serve("work", "t.work", 1, {
            let (started, busy, go_on) = (started.clone(), busy.clone(), go_on.clone());
            move |_, (): ()| {
                let (started, busy, go_on) = (started.clone(), busy.clone(), go_on.clone());
                async move {
                    started.fetch_add(1, Ordering::SeqCst);
                    busy.notify_one();
                    go_on.acquire().await.unwrap().forget();
                    Ok(())
                }
            }
        })
        .await
        .unwrap();
    let first = tokio::spawn({
        let bus = bus.clone();
        async move { bus.request::<_, ()>("t.work", &(), within(10_000)).await }
    });
    busy.notified().await;
    // A stranger keeps no deadline of its own, so that it sees the refusal, while the first still runs.
    let stranger = broker.stranger().await;
    let refused = async |budget_ms: &str| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Km-Budget-Ms", budget_ms);
        let body = codec::encode(&()).unwrap().into();
        let reply = stranger.request_with_headers("t.work", headers, body).await.unwrap();
        assert_eq!(reply.headers.unwrap().get("Nats-Service-Error-Code").unwrap().as_str(), "504");
    };
    refused("100").await;
    go_on.add_permits(10);
    first.await.unwrap().unwrap();
    // Another that is served proves that the queue has moved past the second, whose handler never ran.
    bus.request::<_, ()>("t.work", &(), within(5_000)).await.unwrap();
    assert_eq!(started.load(Ordering::SeqCst), 2);
    refused("0").await;
    assert_eq!(started.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_dropped_at_the_deadline() {
    let broker = Broker::start();
    let bus = broker.bus("service").await;
    let service = bus.service(info("stuck")).await.unwrap();
    let dropped = Arc::new(Notify::new());
    struct OnDrop(Arc<Notify>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let (inner, started) = (dropped.clone(), Arc::new(AtomicUsize::new(0)));
    let count = started.clone();
    let _endpoint = service
        .serve("stuck", "t.stuck", 1, move |_, (): ()| {
            count.fetch_add(1, Ordering::SeqCst);
            let guard = OnDrop(inner.clone());
            async move {
                let _guard = guard;
                std::future::pending::<Result<(), Error>>().await
            }
        })
        .await
        .unwrap();
    // On a busy machine the budget of a request can be spent before its handler starts.
    harness::eventually("a handler starts", async || {
        let error = bus.request::<_, ()>("t.stuck", &(), within(200)).await.unwrap_err();
        assert_eq!(error.reason, Reason::BudgetSpent);
        started.load(Ordering::SeqCst) > 0
    })
    .await;
    tokio::time::timeout(Duration::from_secs(10), dropped.notified()).await.expect("the handler was dropped");
}

#[tokio::test]
async fn what_came_before_an_endpoint_ended_is_answered() {
    let broker = Broker::start();
    let bus = broker.bus("service").await;
    let service = bus.service(info("leaving")).await.unwrap();
    let endpoint = service.serve("last", "t.last", 4, |_, n: u32| async move { Ok(n) }).await.unwrap();
    let url = broker.config().url;
    let (sent, all_sent) = std::sync::mpsc::sync_channel(1);
    let asking = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = async_nats::connect(url).await.unwrap();
            let mut answers = client.subscribe("t.answers").await.unwrap();
            for n in 0..20_u32 {
                let body = codec::encode(&n).unwrap().into();
                client.publish_with_reply("t.last", "t.answers", body).await.unwrap();
            }
            client.flush().await.unwrap();
            sent.send(()).unwrap();
            let all = answers.by_ref().take(20).count();
            tokio::time::timeout(Duration::from_secs(10), all).await
        })
    });
    // This thread, and the service with it, does nothing until the broker has everything.
    all_sent.recv_timeout(Duration::from_secs(10)).unwrap();
    drop(endpoint);
    // With its number, or on a busy machine with the news that the service was kept waiting.
    assert_eq!(asking.await.unwrap().expect("all are answered"), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_told_apart_from_no_answer_in_time() {
    let broker = Broker::start();
    let bus = broker.bus("asker").await;
    let nobody = bus.request::<_, ()>("t.nobody", &(), within(5_000)).await.unwrap_err();
    assert_eq!(nobody.reason, Reason::NoResponders);
    let _silent = bus.subscribe("t.silent", 4).await.unwrap();
    let silent = bus.request::<_, ()>("t.silent", &(), within(100)).await.unwrap_err();
    assert_eq!(silent.reason, Reason::BudgetSpent);
    let spent = bus.request::<_, ()>("t.nobody", &(), within(0)).await.unwrap_err();
    assert_eq!(spent.reason, Reason::BudgetSpent);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_of_the_other_side_arrives_as_it_was_made() {
    let broker = Broker::start();
    let bus = broker.bus("service").await;
    let service = bus.service(info("refuser")).await.unwrap();
    let refusal =
        Error::new(Reason::BadSteps, "steps [250, 500] are not strictly descending").detail("line 7");
    let answer = refusal.clone();
    let _endpoint = service
        .serve("refuse", "t.refuse", 1, move |_, (): ()| std::future::ready(Err::<(), _>(answer.clone())))
        .await
        .unwrap();
    assert_eq!(bus.request::<_, ()>("t.refuse", &(), within(2_000)).await.unwrap_err(), refusal);
    let malformed = bus.request::<_, ()>("t.refuse", &"text", within(2_000)).await.unwrap_err();
    assert_eq!(malformed.reason, Reason::Malformed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_endpoint_says_so_and_serves_again() {
    let broker = Broker::start();
    let bus = broker.bus("service").await;
    let service = bus.service(info("full")).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let inner = gate.clone();
    let _endpoint = service
        .serve("work", "t.full", 1, move |_, (): ()| {
            let gate = inner.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(())
            }
        })
        .await
        .unwrap();
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let bus = bus.clone();
        asked.spawn(async move { bus.request::<_, ()>("t.full", &(), within(20_000)).await });
    }
    let refused = asked.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!(refused.reason, Reason::QueueFull);
    gate.add_permits(200);
    let rest = asked.join_all().await;
    assert!(rest.iter().all(|r| r.as_ref().err().is_none_or(|e| e.reason == Reason::QueueFull)));
    assert!(rest.iter().filter(|r| r.is_ok()).count() >= 60);
    bus.request::<_, ()>("t.full", &(), within(5_000)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_is_named_not_waited_for() {
    let broker = Broker::with_accounts(
        r#"authorization { users = [
            { user: limited, password: pw, permissions: {
                publish: ["t.ok", "_INBOX_limited.>"], subscribe: ["t.ok", "_INBOX_limited.>"] } } ] }"#,
    );
    let mut config = broker.config();
    config.user = Some("limited".to_owned());
    config.password = Some("pw".to_owned().into());
    let bus = bus::Bus::connect(&config, "limited").await.unwrap();
    let error = bus.request::<_, ()>("t.forbidden", &(), within(60_000)).await.unwrap_err();
    assert_eq!(error.reason, Reason::PermissionDenied);
    assert!(error.message.contains("t.forbidden"), "{error}");
    match bus.subscribe("t.forbidden", 1).await {
        Err(error) => assert_eq!(error.reason, Reason::PermissionDenied),
        // The broker's word came later than a subscription waits for it.
        Ok(mut ended) => {
            let last = tokio::time::timeout(Duration::from_secs(10), ended.next()).await;
            assert!(last.expect("the broker's word").is_none());
        }
    }
    bus.subscribe("t.ok", 1).await.unwrap();

    config.password = Some("wrong".to_owned().into());
    let error = bus::Bus::connect(&config, "limited").await.err().expect("refused");
    assert_eq!(error.reason, Reason::PermissionDenied);
    assert!(!format!("{error:?}").contains("wrong"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_is_bounded_and_its_losses_are_counted() {
    let broker = Broker::start();
    let bus = broker.bus("slow").await;
    let mut slow = bus.subscribe("t.media", 8).await.unwrap();
    let mut fence = bus.subscribe("t.fence", 8).await.unwrap();
    for i in 0..100_u32 {
        bus.publish("t.media", &i).await.unwrap();
    }
    bus.publish("t.fence", &()).await.unwrap();
    fence.next().await.unwrap();
    harness::eventually("all messages are accounted for", async || slow.lagged() == 92).await;
    for expected in 0..8_u32 {
        assert_eq!(slow.next().await.unwrap().decode::<u32>().unwrap(), expected);
    }
    let too_large = bus.publish_bytes("t.media", vec![0; codec::MAX_PAYLOAD + 1].into()).await.unwrap_err();
    assert_eq!(too_large.reason, Reason::PayloadTooLarge);
}
