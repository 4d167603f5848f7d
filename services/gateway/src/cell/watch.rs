//! Keeps the view of the cell up to date.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::Subscription;
use bus::presence::{self, Presence};
use contract::status::ProcessStatus;
use contract::{Budget, CellId, Deadline, Error, InstanceId, subjects};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::warn;

use super::view::{CellView, Snapshot};
use crate::broker::Broker;

const TICK: Duration = Duration::from_millis(100);
/// A tick later than this means that this process did not run.
const LATE: Duration = Duration::from_millis(500);
/// Status messages that may wait: some ticks' worth of a large cell.
const BACKLOG: usize = 256;
/// How often those that the cell needs are asked whether they are there.
const ASK: Duration = Duration::from_millis(250);
const ANSWER: Budget = Budget::from_secs(1);
const RESUBSCRIBE: Duration = Duration::from_millis(500);

/// The latest snapshot, and its changes.
#[derive(Clone, Debug)]
pub(crate) struct CellWatch(watch::Receiver<Snapshot>);

impl CellWatch {
    /// Starts watching; ends when every clone is gone.
    pub(crate) fn start(cell: CellId, broker: Arc<Broker>) -> Self {
        let view = CellView::new(cell.clone());
        let (tx, rx) = watch::channel(view.snapshot(Instant::now()));
        tokio::spawn(run(cell, broker, view, tx));
        Self(rx)
    }

    pub(crate) fn now(&self) -> Snapshot {
        self.0.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.0.clone()
    }
}

async fn run(cell: CellId, broker: Arc<Broker>, mut view: CellView, snapshots: watch::Sender<Snapshot>) {
    tokio::select! {
        () = broker.wait() => {}
        () = snapshots.closed() => return,
    }
    let mut statuses = None;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticked = Instant::now();
    let mut ask = interval(ASK);
    ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = JoinSet::new();
    loop {
        if statuses.is_none() {
            statuses = subscribe(&cell, &broker).await;
        }
        tokio::select! {
            // Ticks first: a gap of our own must be discounted before silence is judged.
            biased;
            () = snapshots.closed() => return,
            _ = tick.tick() => {
                let now = Instant::now();
                let gap = now.saturating_duration_since(ticked);
                if gap > LATE {
                    view.discount(gap);
                }
                ticked = now;
                view.set_connected(now, broker.is_connected());
                view.forget_the_dead(now);
            }
            _ = ask.tick(), if asked.is_empty() => {
                for instance in view.to_ask(Instant::now()) {
                    asked.spawn(is_there(cell.clone(), Arc::clone(&broker), instance));
                }
            }
            Some(Ok((instance, presence))) = asked.join_next() => view.asked(instance, presence),
            status = next(&mut statuses) => match status {
                Some(status) => view.observe(Instant::now(), status),
                None => statuses = None,
            },
        }
        let snapshot = view.snapshot(Instant::now());
        snapshots.send_if_modified(|current| {
            let changed = *current != snapshot;
            if changed {
                *current = snapshot;
            }
            changed
        });
    }
}

async fn is_there(cell: CellId, broker: Arc<Broker>, instance: InstanceId) -> (InstanceId, Presence) {
    let Ok(bus) = broker.control() else { return (instance, Presence::Unknown) };
    (instance, presence::ask(bus, &cell, instance, Deadline::after(Instant::now(), ANSWER)).await)
}

async fn subscribe(cell: &CellId, broker: &Broker) -> Option<Subscription> {
    let subscribed: Result<Subscription, Error> =
        async { broker.control()?.subscribe(&subjects::cell_status(cell), BACKLOG).await }.await;
    match subscribed {
        Ok(subscription) => Some(subscription),
        Err(error) => {
            warn!(%error, "cannot subscribe to the cell's status");
            sleep(RESUBSCRIBE).await;
            None
        }
    }
}

/// The next status that can be read; `None` when the subscription has ended.
async fn next(statuses: &mut Option<Subscription>) -> Option<ProcessStatus> {
    let Some(subscription) = statuses else { return std::future::pending().await };
    loop {
        match subscription.next().await?.decode() {
            Ok(status) => return Some(status),
            Err(error) => warn!(%error, "a status message was not understood"),
        }
    }
}
