//! The process's status on the broker, twice a second, and through `/ready` whether it can work.

use std::time::{Duration, Instant};

use contract::status::STATUS_INTERVAL_MS;
use contract::subjects;
use runtime::{Readiness, Shutdown};
use tokio::time::MissedTickBehavior;
use tracing::debug;

use crate::status::Portrait;

pub(crate) struct Heartbeat {
    pub portrait: Portrait,
    pub readiness: Readiness,
    pub shutdown: Shutdown,
}

impl Heartbeat {
    /// Never ends by itself.
    pub(crate) async fn run(self) {
        let subject = subjects::cell_status(&self.portrait.cell_id);
        let mut tick = tokio::time::interval(Duration::from_millis(STATUS_INTERVAL_MS));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut mesh = self.portrait.sessions.mesh().changes();
        let (mut shown, mut leaving) = (None, false);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                // Readiness is shown as soon as it changes, and so is the end.
                _ = mesh.wait_for(|view| view.waiting_for != shown) => {}
                () = self.shutdown.requested(), if !leaving => leaving = true,
            }
            shown = mesh.borrow().waiting_for.clone();
            self.look();
            let status = self.portrait.status(Instant::now());
            if let Err(error) = self.portrait.bus.publish(&subject, &status).await {
                debug!(%error, "no status was published");
            }
        }
    }

    fn look(&self) {
        match self.portrait.waiting_for() {
            Some(what) => self.readiness.set_waiting(what),
            None => self.readiness.set_ready(),
        }
    }
}
