//! Whether a process is there, known at once where it was killed: the broker sees its connection close, and says of a request
//! to it that nobody responds. Who stands still or is cut off is missed by its silence. A leader or a stage0 serves this before
//! it takes anything that it could lose by being missed.

use std::time::Instant;

use contract::{CellId, Deadline, Error, InstanceId, Reason, subjects};

use crate::bus::Bus;
use crate::endpoint::Endpoint;
use crate::service::Service;

/// Questions that are answered at a time.
const CONCURRENCY: usize = 4;

/// What an answer says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Here,
    /// The broker has no connection of it, though it had the time to connect again.
    Gone,
    /// There was no answer, or it may be connecting again.
    Unknown,
}

/// Answers for as long as the endpoint lives.
///
/// # Errors
/// As [`Service::serve`].
pub async fn serve(service: &Service, cell: &CellId, instance: InstanceId) -> Result<Endpoint, Error> {
    let here = |_, (): ()| std::future::ready(Ok(()));
    service.serve("presence", &subjects::presence(cell, instance), CONCURRENCY, here).await
}

/// Asks for a process.
pub async fn ask(bus: &Bus, cell: &CellId, instance: InstanceId, deadline: Deadline) -> Presence {
    match bus.request::<_, ()>(&subjects::presence(cell, instance), &(), deadline).await {
        Ok(()) => Presence::Here,
        Err(error) if error.reason == Reason::NoResponders && bus.link().settled(Instant::now()) => {
            Presence::Gone
        }
        Err(_) => Presence::Unknown,
    }
}
