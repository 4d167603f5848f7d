//! Answers `ops.{cell}.status` while no stage0 does: the gateway is outside the cell and outlives it, and has heard the
//! same statuses. What changes something stays stage0's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bus::{Census, Endpoint, Service, Subscription, recordings};
use contract::ops::{CellReport, StatusRequest};
use contract::status::{ProcessStatus, Role};
use contract::subjects::{self, Ops};
use contract::{Budget, CONTRACT_VERSION, Deadline, Error};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info};

use crate::app::App;

const TICK: Duration = Duration::from_millis(250);
/// Status messages that may wait.
const BACKLOG: usize = 256;
/// What the processes of the cell get to tell their recordings.
const RECORDINGS: Budget = Budget::from_secs(1);
const CONCURRENCY: usize = 2;

#[derive(Clone)]
struct StandIn {
    app: App,
    census: Arc<Mutex<Census>>,
}

/// Runs until the process stops or the connection is closed for good.
pub(crate) async fn stand_in(app: App, service: Service) {
    let stand_in = StandIn { app, census: Arc::new(Mutex::new(Census::new(Instant::now()))) };
    if let Err(error) = stand_in.run(&service).await {
        debug!(%error, "nobody stands in for stage0");
    }
}

impl StandIn {
    async fn run(&self, service: &Service) -> Result<(), Error> {
        let cell = &self.app.config().common.cell.id;
        let bus = self.app.broker().control()?;
        let mut statuses = bus.subscribe(&subjects::cell_status(cell), BACKLOG).await?;
        let mut endpoint: Option<Endpoint> = None;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                status = next(&mut statuses) => match status {
                    None => return Ok(()),
                    Some((at, status)) => self.lock().hear(at, status),
                },
                _ = tick.tick() => {}
            }
            match (self.is_wanted(Instant::now()), &endpoint) {
                (true, None) => endpoint = self.serve(service).await,
                (false, Some(_)) => endpoint = None,
                _ => {}
            }
        }
    }

    /// Whether this process hears the cell's statuses, its own at least, and no stage0 among them.
    fn is_wanted(&self, now: Instant) -> bool {
        let census = self.lock();
        let mut hears = false;
        let stage0 = census.live(now).any(|(status, _)| {
            hears = true;
            status.role == Role::Stage0
        });
        hears && !stage0
    }

    async fn serve(&self, service: &Service) -> Option<Endpoint> {
        let subject = subjects::ops(&self.app.config().common.cell.id, Ops::Status);
        let this = self.clone();
        let handler = move |request: bus::Request, wanted: StatusRequest| {
            let this = this.clone();
            async move { this.status(wanted, request.deadline).await }
        };
        match service.serve_json("ops-status", &subject, CONCURRENCY, handler).await {
            Ok(endpoint) => {
                info!("no stage0 is heard: the gateway answers for the cell");
                Some(endpoint)
            }
            // The next tick tries again.
            Err(error) => {
                debug!(%error, "the cell's status is not served");
                None
            }
        }
    }

    async fn status(&self, wanted: StatusRequest, deadline: Deadline) -> Result<CellReport, Error> {
        let now = Instant::now();
        let observer = (Role::Gateway, self.app.identity().instance);
        let mut report = self.lock().report(now, &self.app.config().common.cell.id, observer);
        if wanted.recorder {
            let deadline = deadline.min(Deadline::after(now, RECORDINGS));
            recordings::fill_in(self.app.broker().control()?, &mut report, deadline).await;
        }
        Ok(report)
    }

    fn lock(&self) -> MutexGuard<'_, Census> {
        self.census.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next status that can be read; `None` when the subscription has ended.
async fn next(statuses: &mut Subscription) -> Option<(Instant, ProcessStatus)> {
    loop {
        let message = statuses.next().await?;
        match message.decode::<ProcessStatus>() {
            Ok(status) if status.version == CONTRACT_VERSION => return Some((message.received, status)),
            Ok(_) => {}
            Err(error) => debug!(%error, "a status message was not understood"),
        }
    }
}
