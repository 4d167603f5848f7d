//! What the leader serves on the broker. Handlers hand over to the driver and wait for its answer; none does any work.

use contract::envelope::{EnvelopeV1, Reply};
use contract::tp::{JoinReply, JoinRequest};
use contract::{CellId, Digest, Error, MeshEpoch, Reason, codec, subjects};

use bus::{Endpoint, Service};
use tokio::sync::{mpsc, oneshot};

use crate::driver::Event;
use crate::key::Gate;

/// Calls that may wait at a time: one INFER, re-asks, keepalives and refusals.
const CALLS: usize = 32;
const JOINS: usize = 16;

pub(crate) async fn serve_join(
    service: &Service,
    cell: &CellId,
    events: mpsc::Sender<Event>,
) -> Result<Endpoint, Error> {
    let handler = move |_, request: JoinRequest| {
        let events = events.clone();
        async move {
            let (reply, answer) = oneshot::channel::<Result<JoinReply, Error>>();
            hand_over(&events, Event::Join { request, reply })?;
            answer.await.unwrap_or_else(|_| Err(stopped()))
        }
    };
    service.serve("tp-join", &subjects::tp_join(cell), JOINS, handler).await
}

pub(crate) async fn serve_calls(
    service: &Service,
    cell: &CellId,
    epoch: MeshEpoch,
    gate: Gate,
    events: mpsc::Sender<Event>,
) -> Result<Endpoint, Error> {
    let handler = move |request: bus::Request, envelope: EnvelopeV1| {
        let (events, gate) = (events.clone(), gate.clone());
        async move {
            gate.check()?;
            let digest = Digest::of(&[&codec::encode(&envelope)?]);
            let (reply, answer) = oneshot::channel::<Result<Reply, Error>>();
            let deadline = request.deadline.at();
            hand_over(&events, Event::Call { envelope: Box::new(envelope), digest, deadline, reply })?;
            // What was asked may have begun.
            let cut_off =
                |_| Err(Error::new(Reason::CallAborted, "the leader stopped before it had answered"));
            answer.await.unwrap_or_else(cut_off)
        }
    };
    service.serve("mesh-call", &subjects::mesh_call(cell, epoch), CALLS, handler).await
}

fn hand_over(events: &mpsc::Sender<Event>, event: Event) -> Result<(), Error> {
    events.try_send(event).map_err(|refused| match refused {
        mpsc::error::TrySendError::Full(_) => Error::new(Reason::QueueFull, "the leader's queue is full"),
        mpsc::error::TrySendError::Closed(_) => stopped(),
    })
}

fn stopped() -> Error {
    Error::new(Reason::Draining, "the leader is stopping")
}
