//! A session may live more than once: who may begin the next life, and what the one before left for it.

use std::time::Instant;

use bus::continuations::{Continuations, Tenure};
use contract::continuation::ContinuationV1;
use contract::error::{Error, Reason};
use contract::ids::Incarnation;
use contract::model::{ModelInfo, Size};
use contract::session::CreateSession;
use contract::{Budget, Deadline};
use tracing::warn;

use super::Sessions;
use crate::mailbox::Ending;
use crate::session::Past;

/// Looking up what a session left, and putting the new life on record.
const LOOK: Budget = Budget::from_secs(2);
/// The incarnation of a session that never lived.
const FIRST: Incarnation = Incarnation(1);

/// One life of a session, about to begin.
pub(super) struct Life {
    pub incarnation: Incarnation,
    pub past: Past,
    /// None where the first life of a session found no place to keep its state in.
    pub tenure: Option<Tenure>,
}

impl Life {
    /// The size of the life before, if this cell still serves it.
    pub(super) fn size(&self, model: &ModelInfo) -> Option<Size> {
        match &self.past {
            Past::State(state) => Some(state.size).filter(|size| model.check_size(*size).is_ok()),
            Past::None | Past::Lost => None,
        }
    }

    /// Highest update number that the state contains.
    pub(super) fn update(&self) -> u64 {
        match &self.past {
            Past::State(state) => state.update,
            Past::None | Past::Lost => 0,
        }
    }
}

impl Sessions {
    /// Ends a life of the session that runs here, without a word: the next one does the talking.
    ///
    /// # Errors
    /// `session_exists` for a life that is not later; `bad_token`.
    pub(super) async fn supersede(&self, request: &CreateSession) -> Result<(), Error> {
        let session = request.session;
        let running = self.with(session, |live| (live.created.incarnation, live.asked.resume.clone()));
        let Ok((incarnation, resume)) = running else { return Ok(()) };
        if request.incarnation <= incarnation {
            let text = format!("session {session} is running here as incarnation {incarnation}");
            return Err(Error::new(Reason::SessionExists, text));
        }
        if request.resume != resume {
            return Err(Error::new(Reason::BadToken, format!("session {session} has another resume token")));
        }
        self.end(session, Ending::Superseded);
        self.gone(session).await;
        Ok(())
    }

    /// # Errors
    /// `bad_token`; for a later life also that what is on record cannot be had now.
    pub(super) async fn begin(&self, request: &CreateSession) -> Result<Life, Error> {
        let first = request.incarnation <= FIRST;
        match self.look(request).await {
            Ok(life) => Ok(life),
            // The next life is fenced by what is on record, so it needs that; the first one only loses its insurance.
            Err(error) if first && error.retryable() => {
                warn!(session = %request.session, %error, detail = error.detail, "the session's state will not be kept");
                Ok(Life { incarnation: request.incarnation, past: Past::None, tenure: None })
            }
            Err(error) => Err(error),
        }
    }

    async fn look(&self, request: &CreateSession) -> Result<Life, Error> {
        let deadline = Deadline::after(Instant::now(), LOOK);
        let js = self.0.making.control.jetstream();
        let open = || Continuations::open(&js, deadline);
        let bucket = self.0.continuations.get_or_try_init(open).await?;
        let (session, least) = (request.session, request.incarnation);
        let (tenure, stored) = bucket.begin(session, least, &request.resume, deadline).await?;
        let incarnation = tenure.incarnation();
        let state = stored.map(|bytes| ContinuationV1::decode(&bytes)).transpose().unwrap_or_else(|error| {
            warn!(%session, %error, "the stored state cannot be read");
            None
        });
        let past = match state {
            Some(state) => Past::State(Box::new(state)),
            None if incarnation <= FIRST => Past::None,
            None => Past::Lost,
        };
        Ok(Life { incarnation, past, tenure: Some(tenure) })
    }
}
