//! One connection, several lives of its session: what [`Continuity`] decides is carried out here.

use std::time::Instant;

use contract::event::SessionState;
use contract::session::{Control, ControlReply, CreateSession};
use contract::{CONTRACT_VERSION, Error, Incarnation, InstanceId, Reason};
use tracing::{debug, info, warn};

use super::actor::{Actor, Ending};
use super::continuity::Step;
use super::messages::ServerMessage;

/// An answer that [`Continuity`](super::continuity::Continuity) awaits.
pub(super) enum Answer {
    Kept(Result<ControlReply, Error>),
    Asked(Result<ControlReply, Error>),
    Created(InstanceId, Result<Incarnation, Error>),
}

impl Actor {
    /// Looks whether the stage0 that owns this session still lives.
    pub(super) fn look(&mut self, now: Instant) -> Option<Ending> {
        let cell = self.cell.borrow_and_update().clone();
        let steps = self.continuity.look(now, &cell);
        steps.into_iter().find_map(|step| self.carry_out(step))
    }

    fn carry_out(&mut self, step: Step) -> Option<Ending> {
        match step {
            Step::Tell(error) => {
                info!(%error, "the picture stands still");
                self.tell_state(SessionState::Recovering, Some(&error));
            }
            Step::Ask => {
                let line = self.line.clone();
                self.answers.spawn(async move { Answer::Asked(line.control(&Control::Viewer).await) });
            }
            Step::Create(stage0, incarnation) => self.create(stage0, incarnation),
            Step::Settled(state) => {
                info!(state = state.as_str(), "the picture goes on");
                self.tell_state(state, None);
            }
            Step::GiveUp(error) => return Some(Some(error.for_client())),
            Step::TakenOver => return Some(self.taken_over()),
        }
        None
    }

    /// Tells stage0 that somebody watches.
    pub(super) fn keep(&mut self) {
        let line = self.line.clone();
        self.answers.spawn(async move { Answer::Kept(line.control(&Control::Viewer).await) });
    }

    /// Somebody else goes on with the session: it must not be closed under them.
    pub(super) fn taken_over(&mut self) -> Ending {
        self.leave = true;
        Some(Error::new(Reason::SessionEnded, "the stream goes on in another connection").for_client())
    }

    fn create(&mut self, stage0: InstanceId, incarnation: Incarnation) {
        let (parameters, update) = self.shared.acknowledged();
        let request = CreateSession {
            version: CONTRACT_VERSION,
            session: self.id,
            incarnation,
            resume: self.resume.clone(),
            size: Some(self.shared.size),
            codec: self.codec,
            bitrate_kbps: self.bitrate.current_kbps(),
            parameters,
            update,
        };
        info!(%stage0, %incarnation, "another life of the session is asked for");
        let (line, cell) = (self.line.clone(), self.app.config().common.cell.id.clone());
        self.answers.spawn(async move {
            let created = line.create(&cell, &request).await;
            Answer::Created(stage0, created.map(|created| created.incarnation))
        });
    }

    pub(super) fn on_answer(&mut self, answer: Answer) -> Option<Ending> {
        let now = Instant::now();
        let step = match answer {
            Answer::Kept(answer) => self.continuity.kept(answer.map(drop).map_err(|error| error.reason)),
            Answer::Asked(answer) => {
                if let Err(error) = &answer {
                    debug!(%error, "stage0 was asked for the session");
                }
                let watching = answer.and_then(|reply| match reply {
                    ControlReply::Watching { incarnation, state } => Ok((incarnation, state)),
                    _ => Err(Error::new(Reason::Malformed, "stage0 answered something else")),
                });
                self.continuity.asked(now, watching)
            }
            Answer::Created(stage0, created) => {
                if let Err(error) = &created {
                    warn!(%error, "no other life of the session could be had");
                }
                // A viewer is there, and says so at once.
                self.viewer_told = None;
                self.continuity.created(now, stage0, created)
            }
        };
        step.and_then(|step| self.carry_out(step))
    }

    fn tell_state(&mut self, state: SessionState, error: Option<&Error>) {
        self.shared.set_state(state, error.map(Error::for_client));
        self.channel.send(&ServerMessage::state(state, error));
    }
}
