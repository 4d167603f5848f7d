//! One session's line to stage0: requests with their budgets, and a queue for those that nobody waits for.

use std::sync::Arc;
use std::time::Instant;

use contract::params::Parameters;
use contract::session::{
    Control, ControlReply, CreateSession, ParametersAccepted, SessionCreated, UpdateParameters,
};
use contract::{Budget, CONTRACT_VERSION, CellId, Deadline, Error, SessionId, subjects};
use tokio::sync::mpsc;
use tracing::debug;

use crate::broker::Broker;

pub(crate) const CREATE_BUDGET: Budget = Budget::from_secs(5);
pub(crate) const CONTROL_BUDGET: Budget = Budget::from_secs(1);
/// Controls waiting to be sent; each is superseded by the next of its kind, so losing one is no harm.
const BACKLOG: usize = 16;

#[derive(Clone)]
pub(crate) struct Line {
    broker: Arc<Broker>,
    session: SessionId,
    queue: mpsc::Sender<Control>,
}

impl Line {
    pub(crate) fn new(broker: Arc<Broker>, session: SessionId) -> Self {
        let (queue, waiting) = mpsc::channel(BACKLOG);
        tokio::spawn(send_queued(Arc::clone(&broker), session, waiting));
        Self { broker, session, queue }
    }

    pub(crate) async fn create(
        &self,
        cell: &CellId,
        request: &CreateSession,
    ) -> Result<SessionCreated, Error> {
        let deadline = Deadline::after(Instant::now(), CREATE_BUDGET);
        self.broker.control()?.request(&subjects::session_create(cell), request, deadline).await
    }

    pub(crate) async fn update(&self, parameters: Parameters) -> Result<ParametersAccepted, Error> {
        let request = UpdateParameters { version: CONTRACT_VERSION, parameters };
        let deadline = Deadline::after(Instant::now(), CONTROL_BUDGET);
        self.broker.control()?.request(&subjects::session_params(self.session), &request, deadline).await
    }

    pub(crate) async fn control(&self, control: &Control) -> Result<ControlReply, Error> {
        ask(&self.broker, self.session, control).await
    }

    /// Sends it when its turn comes, and forgets it.
    pub(crate) fn queue(&self, control: Control) {
        if let Err(error) = self.queue.try_send(control) {
            debug!(session = %self.session, %error, "a control was not queued");
        }
    }
}

async fn ask(broker: &Broker, session: SessionId, control: &Control) -> Result<ControlReply, Error> {
    let deadline = Deadline::after(Instant::now(), CONTROL_BUDGET);
    broker.control()?.request(&subjects::session_control(session), control, deadline).await
}

/// Ends when the last clone of the line is gone.
async fn send_queued(broker: Arc<Broker>, session: SessionId, mut waiting: mpsc::Receiver<Control>) {
    while let Some(control) = waiting.recv().await {
        if let Err(error) = ask(&broker, session, &control).await {
            debug!(%session, %error, ?control, "a control was refused");
        }
    }
}
