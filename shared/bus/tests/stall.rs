//! A service that was stopped discards what it received meanwhile.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod harness;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use contract::Reason;
use harness::{Broker, within};

struct Counter(Child);

impl Counter {
    fn start(url: &str) -> Self {
        // Cargo builds examples beside the tests.
        let test = std::env::current_exe().unwrap();
        let example: PathBuf = test.parent().unwrap().parent().unwrap().join("examples/counter");
        let mut child = Command::new(example).arg(url).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        Self(child)
    }

    fn stands_still(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_waited_through_a_stop_are_refused_not_served_late() {
    let broker = Broker::start();
    let bus = broker.bus("asker").await;
    let counter = Counter::start(&broker.config().url);
    assert_eq!(bus.request::<_, u64>("t.count", &(), within(5_000)).await.unwrap(), 1);
    counter.signal("-STOP");
    harness::eventually("it stands still", async || counter.stands_still()).await;
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let bus = bus.clone();
        asked.spawn(async move { bus.request::<_, u64>("t.count", &(), within(20_000)).await });
    }
    // The fault itself: stopped for longer than what counts as a stall.
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    counter.signal("-CONT");
    for answer in asked.join_all().await {
        assert_eq!(answer.unwrap_err().reason, Reason::BrokerUnavailable);
    }
    harness::eventually("it serves again, and had served none of them", async || {
        match bus.request::<_, u64>("t.count", &(), within(5_000)).await {
            Ok(count) => {
                assert_eq!(count, 2);
                true
            }
            Err(error) => {
                assert_eq!(error.reason, Reason::BrokerUnavailable);
                false
            }
        }
    })
    .await;
}
