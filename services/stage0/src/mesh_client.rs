//! The only sender to the mesh: lease, keepalive, calls and the link's tensors all go through one actor and its queue.
//!
//! Sessions hand in jobs and find the outcome in their mailbox. What may be sent when is decided by
//! [`mesh::controller::Controller`]; the actor carries it out.

mod actor;
mod transfer;

use std::sync::Arc;
use std::time::Duration;

use contract::envelope::{Infer, ResultV1};
use contract::error::{Error, Reason};
use contract::ids::{CallId, LeaseEpoch};
use contract::status::{LinkState, RunTimes};
use contract::tensor::TensorKey;
use tch::Tensor;
use tokio::sync::{mpsc, oneshot, watch};

use crate::mailbox::{Asked, Mailbox};

pub(crate) use actor::{Settings, start};

/// One chunk to make.
pub(crate) struct Job {
    /// Passed preflight; its tensors lie nowhere yet.
    pub infer: Infer,
    pub tensors: Vec<(TensorKey, Tensor)>,
    /// Where the outcome goes, and as the answer to what.
    pub mailbox: Arc<Mailbox>,
    pub asked: Asked,
}

impl Job {
    fn deliver(&self, outcome: Outcome) {
        self.mailbox.deliver(self.asked, outcome);
    }
}

/// What became of a job.
pub(crate) struct Outcome {
    pub result: Result<Box<Done>, Error>,
}

impl Outcome {
    pub(crate) fn failed(error: Error) -> Self {
        Self { result: Err(error) }
    }
}

pub(crate) struct Done {
    /// `[1, frames, C, h, w]`, on the CPU.
    pub latents: Tensor,
    pub result: Box<ResultV1>,
    /// Writing to and reading from the link.
    pub link: Duration,
    /// Request sent until reply received.
    pub call: Duration,
}

/// What the rest of the process may know of the mesh.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MeshView {
    /// What calls wait for; `None` when they can be made.
    pub waiting_for: Option<String>,
    pub lease: Option<LeaseEpoch>,
    /// How often a lease was taken. What was made under an older one is not on the mesh any more.
    pub attachment: u64,
    /// KV slots that sessions may use; 0 before there was a lease.
    pub session_slots: u32,
    /// Whatever is handed in is answered within this.
    pub patience: Duration,
    pub link: LinkState,
    /// The INFER that runs, and the last one sent under the lease.
    pub running: Option<CallId>,
    pub last_call: Option<CallId>,
    /// Calls that ended well, and how long the next may take.
    pub calls: Option<RunTimes>,
    pub budget: Duration,
}

/// What the process asks of the mesh beside chunks.
#[derive(Debug)]
pub(crate) enum Order {
    /// Stop the mesh.
    Shutdown { reason: String },
    /// Give the lease back; the actor ends.
    Bye,
}

#[derive(Clone)]
pub(crate) struct MeshHandle {
    jobs: mpsc::Sender<Job>,
    orders: mpsc::Sender<(Order, oneshot::Sender<()>)>,
    view: watch::Receiver<MeshView>,
}

impl MeshHandle {
    /// Never waits; the outcome comes to the job's mailbox.
    pub(crate) fn submit(&self, job: Job) {
        let Err(refused) = self.jobs.try_send(job) else { return };
        let (job, reason, text) = match refused {
            mpsc::error::TrySendError::Full(job) => {
                (job, Reason::QueueFull, "too many calls wait for the mesh")
            }
            mpsc::error::TrySendError::Closed(job) => {
                (job, Reason::SessionEnded, "the mesh client has stopped")
            }
        };
        job.deliver(Outcome::failed(Error::new(reason, text)));
    }

    pub(crate) fn view(&self) -> MeshView {
        self.view.borrow().clone()
    }

    /// Sees each change of the view.
    pub(crate) fn changes(&self) -> watch::Receiver<MeshView> {
        self.view.clone()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.view.borrow().waiting_for.is_none()
    }

    pub(crate) fn waiting_for(&self) -> String {
        self.view.borrow().waiting_for.clone().unwrap_or_else(|| "nothing".to_owned())
    }

    pub(crate) fn patience(&self) -> Duration {
        self.view.borrow().patience
    }

    /// Asks the mesh to stop; returns when it has answered or `limit` is over.
    pub(crate) async fn shutdown(&self, reason: String, limit: Duration) {
        self.order(Order::Shutdown { reason }, limit).await;
    }

    /// Gives the lease back; returns when the mesh has answered or `limit` is over.
    pub(crate) async fn bye(&self, limit: Duration) {
        self.order(Order::Bye, limit).await;
    }

    async fn order(&self, order: Order, limit: Duration) {
        let (done, answered) = oneshot::channel();
        if self.orders.try_send((order, done)).is_ok() {
            let _ = tokio::time::timeout(limit, answered).await;
        }
    }
}
