//! The leader key: taken once for each mesh epoch, renewed, and proven again after every doubt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bus::Bus;
use bus::leader_key::Claim;
use contract::{Budget, CellId, Deadline, Error, InstanceId, MeshEpoch, Reason};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

/// Pause after an attempt that failed.
const RETRY: Duration = Duration::from_millis(300);

pub(crate) enum Order {
    /// Give the present epoch up and take a new one.
    Take(oneshot::Sender<MeshEpoch>),
    /// Give the key up, so that a successor need not wait.
    Release(oneshot::Sender<()>),
}

/// Whether the key is known to be ours right now. Nothing is answered while it is not.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<AtomicBool>);

impl Gate {
    /// # Errors
    /// `not_ready` while the leader does not know that it still leads.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.0.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::new(Reason::NotReady, "the leader has yet to prove that it still leads this cell"))
    }

    fn set(&self, proven: bool) {
        self.0.store(proven, Ordering::Release);
    }
}

pub(crate) struct Keeper {
    pub(crate) bus: Bus,
    pub(crate) cell: CellId,
    pub(crate) instance: InstanceId,
    pub(crate) ttl: Duration,
    pub(crate) gate: Gate,
    /// Hears why the key was lost.
    pub(crate) lost: mpsc::Sender<String>,
}

impl Keeper {
    pub(crate) async fn keep(self, mut orders: mpsc::Receiver<Order>) {
        let mut claim: Option<Claim> = None;
        let mut state = self.bus.state();
        let mut renewal = interval((self.ttl / 3).max(Duration::from_millis(50)));
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None => return,
                    Some(Order::Take(taken)) => {
                        self.gate.set(false);
                        release(claim.take()).await;
                        let new = self.take().await;
                        let epoch = new.epoch();
                        claim = Some(new);
                        self.gate.set(true);
                        renewal.reset();
                        if taken.send(epoch).is_err() {
                            return release(claim).await;
                        }
                    }
                    Some(Order::Release(released)) => {
                        self.gate.set(false);
                        release(claim.take()).await;
                        let _ = released.send(());
                    }
                },
                changed = state.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // A reconnect, or this process was stalled: the key may be someone else's by now.
                    self.gate.set(false);
                    if !self.prove(claim.as_mut()).await {
                        return;
                    }
                }
                _ = renewal.tick() => {
                    if !self.prove(claim.as_mut()).await {
                        return;
                    }
                }
            }
        }
    }

    /// False once the key is lost for good.
    async fn prove(&self, claim: Option<&mut Claim>) -> bool {
        let Some(claim) = claim else { return true };
        match claim.prove(within(self.ttl)).await {
            Ok(()) => {
                self.gate.set(true);
                true
            }
            Err(error) if error.reason == Reason::Fenced => {
                self.gate.set(false);
                let _ = self.lost.send(error.to_string()).await;
                false
            }
            // Nothing is known. The next tick asks again; until then nothing is answered.
            Err(error) => {
                self.gate.set(false);
                warn!(%error, "the leader key could not be renewed");
                true
            }
        }
    }

    /// Waits for the key for as long as another leader lives: then this one is a standby.
    async fn take(&self) -> Claim {
        loop {
            match Claim::take(&self.bus, &self.cell, self.instance, self.ttl).await {
                Ok(claim) => {
                    info!(epoch = claim.epoch().0, "the leader key is taken");
                    return claim;
                }
                Err(error) => warn!(%error, "the leader key could not be taken"),
            }
            sleep(RETRY).await;
        }
    }
}

async fn release(claim: Option<Claim>) {
    if let Some(claim) = claim
        && let Err(error) = claim.release(within(Duration::from_millis(500))).await
    {
        warn!(%error, "the leader key could not be released");
    }
}

fn within(time: Duration) -> Deadline {
    Deadline::after(Instant::now(), Budget::from(time))
}
