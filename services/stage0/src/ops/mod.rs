//! What operators may ask, as JSON: `ops.{cell}.{status,reset,drain,shutdown}`.

mod ending;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bus::{Endpoint, Service, recordings};
use contract::error::{Error, Reason};
use contract::ids::SessionId;
use contract::ops::{CellReport, OpsAccepted, ResetRequest, StatusRequest, StopRequest};
use contract::recording::RecordingRequest;
use contract::subjects::{self, Ops};
use contract::{Budget, Deadline};
use runtime::{ExitCode, Shutdown};

use crate::cell::Cell;
use crate::status::Portrait;
use ending::{Ending, Wish};

/// Sessions get this long to say goodbye.
const FAREWELL: Duration = Duration::from_secs(2);
const MESH_ANSWER: Duration = Duration::from_secs(1);
/// What the processes of the cell get to tell their recordings.
const RECORDINGS: Budget = Budget::from_secs(1);
const CONCURRENCY: usize = 2;

#[derive(Clone)]
pub(crate) struct Operations {
    portrait: Portrait,
    cell: Cell,
    shutdown: Shutdown,
    /// From the end of the sessions until the process is gone, at the latest.
    grace: Duration,
    ending: Arc<Mutex<Ending>>,
}

impl Operations {
    pub(crate) fn new(portrait: Portrait, cell: Cell, shutdown: Shutdown, grace: Duration) -> Self {
        Self { portrait, cell, shutdown, grace, ending: Arc::default() }
    }

    /// # Errors
    /// The broker refuses an endpoint or is away.
    pub(crate) async fn serve(self, service: &Service) -> Result<Vec<Endpoint>, Error> {
        let mut endpoints = Vec::new();
        for verb in Ops::ALL {
            let subject = subjects::ops(&self.portrait.cell_id, verb);
            let name = format!("ops-{}", verb.verb());
            let this = self.clone();
            let endpoint = match verb {
                Ops::Status => {
                    let handler = move |request: bus::Request, wanted: StatusRequest| {
                        let this = this.clone();
                        async move { Ok(this.status(wanted, request.deadline).await) }
                    };
                    service.serve_json(&name, &subject, CONCURRENCY, handler).await
                }
                Ops::Reset => {
                    let handler = move |_, request: ResetRequest| std::future::ready(this.reset(&request));
                    service.serve_json(&name, &subject, CONCURRENCY, handler).await
                }
                Ops::Drain | Ops::Shutdown => {
                    let wish = if verb == Ops::Drain { Wish::Drain } else { Wish::Shutdown };
                    let handler = move |_, _: StopRequest| std::future::ready(this.stop(wish));
                    service.serve_json(&name, &subject, CONCURRENCY, handler).await
                }
            };
            endpoints.push(endpoint?);
        }
        let recorder = self.portrait.recorder.clone();
        let subject = subjects::recorder(&self.portrait.cell_id, self.portrait.instance);
        let recording = move |_, asked: RecordingRequest| {
            std::future::ready(Ok(recorder.recording().newest(asked.max_bytes)))
        };
        endpoints.push(service.serve("recorder", &subject, 1, recording).await?);
        Ok(endpoints)
    }

    async fn status(&self, wanted: StatusRequest, deadline: Deadline) -> CellReport {
        let now = Instant::now();
        // One's own state as it is now, not as it was told last.
        self.cell.hear(now, self.portrait.status(now));
        let mut report = self.cell.report(now, &self.portrait.cell_id, self.portrait.instance);
        if wanted.recorder {
            let deadline = deadline.min(Deadline::after(now, RECORDINGS));
            recordings::fill_in(&self.portrait.bus, &mut report, deadline).await;
        }
        report
    }

    fn reset(&self, request: &ResetRequest) -> Result<OpsAccepted, Error> {
        let sessions = self.portrait.sessions.reset(request.session)?;
        let will = "restart the history of these sessions with their next chunk";
        let done = "status shows a higher cache_epoch for each session; a paused one starts when it goes on";
        Ok(self.accepted(will, sessions, self.portrait.sessions.mesh().patience(), done))
    }

    fn stop(&self, wish: Wish) -> Result<OpsAccepted, Error> {
        let mut ending = self.lock();
        if let Some(answer) = ending.answered(wish) {
            return Ok(answer.clone());
        }
        let commands = self.portrait.sessions.mesh().view().lease.is_some();
        let (why, will, within) = match wish {
            Wish::Drain => {
                ("an operator drains this cell", "end these sessions, take no more, and exit", FAREWELL)
            }
            Wish::Shutdown if commands => (
                "an operator shuts this cell down",
                "end these sessions, stop the mesh, and exit",
                FAREWELL + MESH_ANSWER,
            ),
            Wish::Shutdown => (
                "an operator shuts this cell down",
                "end these sessions and exit; no lease is held, so the mesh is not told: stop its processes by signal",
                FAREWELL,
            ),
        };
        let sessions = self.portrait.sessions.close(&Error::new(Reason::Draining, why));
        let done = match wish {
            Wish::Drain => "status lists the sessions left, until this instance is silent in it",
            Wish::Shutdown => {
                "status lists the sessions left, until this instance and the mesh's are silent in it"
            }
        };
        let answer = self.accepted(will, sessions, within + self.grace, done);
        match ending.accept(wish, answer.clone()) {
            Some(true) => drop(tokio::spawn(self.clone().finish())),
            Some(false) => {}
            None => {
                return Err(Error::new(
                    Reason::Draining,
                    "this stage0 has drained and is leaving: ask the next one",
                ));
            }
        }
        Ok(answer)
    }

    async fn finish(self) {
        self.portrait.sessions.none_left(FAREWELL).await;
        let wish = self.lock().leave();
        let reason = match wish {
            Some(Wish::Shutdown) => {
                let mesh = self.portrait.sessions.mesh();
                mesh.shutdown("an operator asked for it".to_owned(), MESH_ANSWER).await;
                "shut down by an operator"
            }
            Some(Wish::Drain) | None => "drained",
        };
        self.shutdown.begin(ExitCode::Stopped, reason);
    }

    fn accepted(
        &self,
        will: &str,
        sessions: Vec<SessionId>,
        within: Duration,
        done_when: &str,
    ) -> OpsAccepted {
        OpsAccepted {
            will: will.to_owned(),
            instance: self.portrait.instance,
            sessions,
            within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
            done_when: done_when.to_owned(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ending> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
