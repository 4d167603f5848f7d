//! What the server says on the data channel. Clients ignore types that they do not know.

use contract::Error;
use contract::error::ClientError;
use contract::event::{ChunkReport, Event, SessionState};
use contract::ids::{CacheEpoch, ChunkIndex};
use contract::params::Parameters;
use serde::Serialize;

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ServerMessage {
    /// The last message of a session.
    StreamStopped {
        #[serde(skip_serializing_if = "Option::is_none")]
        error_message: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<ClientError>,
    },
    /// Someone changed parameters over HTTP.
    ParametersUpdated {
        parameters: Box<Parameters>,
    },
    /// The update of this number will be part of the chunk that starts next.
    ParametersAccepted {
        update: u64,
    },
    SessionState {
        state: SessionState,
        error: Option<ClientError>,
    },
    /// Another process makes the stream now.
    Continued {
        chunk_index: ChunkIndex,
        cache_epoch: CacheEpoch,
        /// Whether the history goes on; otherwise it starts anew.
        restored: bool,
        /// Chunks of the history that were never shown, as far as this connection knows.
        #[serde(skip_serializing_if = "Option::is_none")]
        lost_chunks: Option<u64>,
    },
    Applied {
        update: u64,
        chunk_index: ChunkIndex,
        cache_epoch: CacheEpoch,
        changed: Box<Parameters>,
        transition_active: bool,
    },
    Chunk(Box<ChunkReport>),
    Error {
        error: ClientError,
        /// It answers an update of this client, in place of `parameters_accepted`.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        refused: bool,
    },
}

impl ServerMessage {
    pub(crate) fn refused(error: &Error) -> Self {
        Self::Error { error: error.for_client(), refused: true }
    }

    pub(crate) fn stopped(error: Option<&ClientError>) -> Self {
        Self::StreamStopped { error_message: error.map(|e| e.message.clone()), error: error.cloned() }
    }

    pub(crate) fn state(state: SessionState, error: Option<&Error>) -> Self {
        Self::SessionState { state, error: error.map(Error::for_client) }
    }

    pub(crate) fn to_json(&self) -> String {
        // Plain data with string keys always serialises.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reports that a full queue may lose: the next one replaces them.
    pub(crate) fn is_report(&self) -> bool {
        matches!(self, Self::Chunk(_))
    }
}

impl ServerMessage {
    /// `shown`: the last chunk that this connection was told of.
    pub(crate) fn of(event: Event, shown: Option<ChunkIndex>) -> Self {
        match event {
            Event::Continued { chunk_index, cache_epoch, restored } => {
                let lost = |shown: ChunkIndex| chunk_index.0.saturating_sub(shown.next().0);
                let lost_chunks = shown.filter(|_| restored).map(lost);
                Self::Continued { chunk_index, cache_epoch, restored, lost_chunks }
            }
            Event::State { state, error } => Self::SessionState { state, error },
            Event::Error { error } => Self::Error { error, refused: false },
            Event::Applied { update, chunk_index, cache_epoch, changed, transition_active } => {
                Self::Applied { update, chunk_index, cache_epoch, changed, transition_active }
            }
            Event::Chunk(report) => Self::Chunk(report),
        }
    }
}

#[cfg(test)]
mod tests {
    use contract::Reason;
    use serde_json::{Value, json};

    use super::*;

    fn parsed(message: &ServerMessage) -> Value {
        serde_json::from_str(&message.to_json()).unwrap()
    }

    #[test]
    fn what_was_lost_between_two_lives_is_counted_from_the_last_chunk_that_was_shown() {
        let continued = |restored, next, shown: Option<u64>| {
            let (chunk_index, cache_epoch) = (ChunkIndex(next), CacheEpoch(3));
            let event = Event::Continued { chunk_index, cache_epoch, restored };
            parsed(&ServerMessage::of(event, shown.map(ChunkIndex)))["lost_chunks"].clone()
        };
        assert_eq!(continued(true, 9, Some(6)), 2);
        assert_eq!(continued(true, 9, Some(8)), 0);
        assert_eq!(continued(true, 9, Some(9)), 0, "a chunk that is made twice");
        assert_eq!(continued(true, 2, None), Value::Null, "another connection may have shown them");
        assert_eq!(continued(false, 0, Some(6)), Value::Null);
    }

    #[test]
    fn messages_have_the_form_that_clients_know() {
        assert_eq!(parsed(&ServerMessage::stopped(None)), json!({"type": "stream_stopped"}));
        let error = Error::new(Reason::RankLost, "rank 1 died").detail("secret");
        let stopped = parsed(&ServerMessage::stopped(Some(&error.for_client())));
        assert_eq!(stopped["error_message"], "rank 1 died");
        let refused = parsed(&ServerMessage::refused(&Error::new(Reason::BadField, "noise_scale is 2")));
        assert_eq!(
            refused,
            json!({"type": "error", "error": {"class": "invalid_argument", "reason": "bad_field", "retryable": false,
                "message": "noise_scale is 2"}, "refused": true})
        );
        let failed = ServerMessage::of(Event::Error { error: error.for_client() }, None);
        assert!(parsed(&failed).get("refused").is_none(), "no update of the client's failed");
        let changed = Parameters { base_seed: Some(7), ..Parameters::default() };
        let updated = ServerMessage::ParametersUpdated { parameters: Box::new(changed) };
        assert_eq!(parsed(&updated), json!({"type": "parameters_updated", "parameters": {"base_seed": 7}}));
        assert_eq!(
            parsed(&ServerMessage::ParametersAccepted { update: 3 }),
            json!({"type": "parameters_accepted", "update": 3})
        );
    }
}
