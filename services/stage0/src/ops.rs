//! What operators may ask, as JSON: `ops.{cell}.{status,reset,drain,shutdown}`.

use std::time::{Duration, Instant};

use bus::{Endpoint, Service};
use contract::error::{Error, Reason};
use contract::ids::CellId;
use contract::ops::{CellReport, OpsAccepted, ResetRequest};
use contract::subjects::{self, Ops};
use runtime::{ExitCode, Readiness, Shutdown};
use serde::{Deserialize, Serialize};

use crate::cell::Cell;
use crate::sessions::Sessions;

/// Sessions get this long to say goodbye.
const FAREWELL: Duration = Duration::from_secs(2);
const MESH_ANSWER: Duration = Duration::from_secs(1);
const CONCURRENCY: usize = 2;

/// A body that may be empty, and whose content does not matter.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Anything {}

#[derive(Clone)]
pub(crate) struct Operations {
    pub cell_id: CellId,
    pub cell: Cell,
    pub sessions: Sessions,
    pub readiness: Readiness,
    pub shutdown: Shutdown,
}

impl Operations {
    /// # Errors
    /// The broker refuses an endpoint or is away.
    pub(crate) async fn serve(self, service: &Service) -> Result<Vec<Endpoint>, Error> {
        let mut endpoints = Vec::new();
        for verb in Ops::ALL {
            let subject = subjects::ops(&self.cell_id, verb);
            let name = format!("ops-{}", verb.verb());
            let this = self.clone();
            let endpoint = match verb {
                Ops::Status => {
                    let handler = move |_, _: Anything| std::future::ready(Ok(this.status()));
                    service.serve_json(&name, &subject, CONCURRENCY, handler).await
                }
                Ops::Reset => {
                    let handler = move |_, request: ResetRequest| std::future::ready(this.reset(&request));
                    service.serve_json(&name, &subject, CONCURRENCY, handler).await
                }
                Ops::Drain => {
                    let handler = move |_, _: Anything| std::future::ready(Ok(this.drain()));
                    service.serve_json(&name, &subject, CONCURRENCY, handler).await
                }
                Ops::Shutdown => {
                    let handler = move |_, _: Anything| std::future::ready(Ok(this.stop_all()));
                    service.serve_json(&name, &subject, CONCURRENCY, handler).await
                }
            };
            endpoints.push(endpoint?);
        }
        Ok(endpoints)
    }

    fn status(&self) -> CellReport {
        let waiting_for = self.readiness.waiting();
        CellReport {
            cell: self.cell_id.clone(),
            ready: waiting_for.is_none(),
            waiting_for,
            processes: self.cell.processes(Instant::now()),
            sessions: self.sessions.reports(),
        }
    }

    fn reset(&self, request: &ResetRequest) -> Result<OpsAccepted, Error> {
        let sessions = self.sessions.reset(request.session)?;
        Ok(OpsAccepted {
            will: "restart the history of these sessions with their next chunk".to_owned(),
            sessions,
        })
    }

    fn drain(&self) -> OpsAccepted {
        let sessions = self.sessions.close(&Error::new(Reason::Draining, "an operator drains this cell"));
        let this = self.clone();
        tokio::spawn(async move {
            this.sessions.none_left(FAREWELL).await;
            this.shutdown.begin(ExitCode::Stopped, "drained");
        });
        OpsAccepted { will: "end these sessions, take no more, and exit".to_owned(), sessions }
    }

    fn stop_all(&self) -> OpsAccepted {
        let sessions = self.sessions.close(&Error::new(Reason::Draining, "an operator shuts this cell down"));
        let this = self.clone();
        tokio::spawn(async move {
            this.sessions.none_left(FAREWELL).await;
            this.sessions.mesh().shutdown("an operator asked for it".to_owned(), MESH_ANSWER).await;
            this.shutdown.begin(ExitCode::Stopped, "shut down by an operator");
        });
        OpsAccepted { will: "end these sessions, stop the mesh, and exit".to_owned(), sessions }
    }
}
