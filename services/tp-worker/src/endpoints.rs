//! What a rank serves on the broker while it is in an epoch: plan, go and cancel for itself, and the leader's shutdown.

use bus::{Bus, Endpoint, Service};
use contract::tp::{Ack, Assignment, PlanRef, PlanRequest, TpShutdown};
use contract::{CellId, Error, Reason, subjects};
use mesh::worker::Input;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tracing::warn;

use crate::driver::{Ask, Event};

/// Requests of each kind at a time: the first and those sent again.
const CONCURRENCY: usize = 8;

/// Served until dropped.
pub(crate) struct EpochEndpoints {
    plans: Option<[Endpoint; 3]>,
    shutdown: AbortHandle,
}

impl EpochEndpoints {
    /// The epoch was left: no plan is taken any more. Its shutdown is still heard, since the abort that comes with one may
    /// be faster than the message.
    pub(crate) fn leave(&mut self) {
        self.plans = None;
    }
}

impl Drop for EpochEndpoints {
    fn drop(&mut self) {
        self.shutdown.abort();
    }
}

pub(crate) async fn serve(
    bus: &Bus,
    service: &Service,
    cell: &CellId,
    assignment: &Assignment,
    events: mpsc::Sender<Event>,
) -> Result<EpochEndpoints, Error> {
    let (epoch, rank) = (assignment.mesh_epoch, assignment.rank);
    let to = events.clone();
    let plan = move |_, request: PlanRequest| ask(to.clone(), Ask::Plan(Box::new(request)));
    let to = events.clone();
    let go = move |_, reference: PlanRef| ask(to.clone(), Ask::Go(reference));
    let to = events.clone();
    let cancel = move |_, reference: PlanRef| ask(to.clone(), Ask::Cancel(reference));
    let plans = [
        service.serve("tp-plan", &subjects::tp_plan(cell, epoch, rank), CONCURRENCY, plan).await?,
        service.serve("tp-go", &subjects::tp_go(cell, epoch, rank), CONCURRENCY, go).await?,
        service.serve("tp-cancel", &subjects::tp_cancel(cell, epoch, rank), CONCURRENCY, cancel).await?,
    ];
    let mut shutdowns = bus.subscribe(&subjects::tp_shutdown(cell, epoch), 4).await?;
    let listen = async move {
        while let Some(message) = shutdowns.next().await {
            match message.decode::<TpShutdown>() {
                Ok(shutdown) => {
                    let _ = events.send(Event::Machine(Input::Shutdown(shutdown))).await;
                }
                Err(error) => warn!(%error, "a shutdown that cannot be read"),
            }
        }
    };
    Ok(EpochEndpoints { plans: Some(plans), shutdown: tokio::spawn(listen).abort_handle() })
}

async fn ask(events: mpsc::Sender<Event>, ask: Ask) -> Result<Ack, Error> {
    let (reply, answer) = oneshot::channel();
    let queued = events.try_send(Event::Ask { ask, reply });
    queued.map_err(|_| Error::new(Reason::QueueFull, "this rank's queue is full"))?;
    answer.await.unwrap_or_else(|_| Err(Error::new(Reason::Draining, "this rank is stopping")))
}
