//! An operator with a plain NATS client: knows subjects and JSON, nothing of kinemesh's own bus.

use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use contract::CellId;
use contract::codec::MAX_PAYLOAD;
use contract::subjects::{self, Ops};
use serde_json::Value;

use crate::cell::Cell;
use crate::wait;

/// The budget of `ops.*`, and a second.
const PATIENCE: Duration = Duration::from_secs(6);

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The error's code in ADR-32's header, if it is one.
    pub code: Option<String>,
    pub body: Value,
    pub bytes: usize,
}

pub struct Operator {
    client: Client,
    cell: CellId,
}

impl Operator {
    /// Connects as the user `ops`.
    ///
    /// # Panics
    /// If the broker refuses it.
    pub async fn connect(cell: &Cell) -> Self {
        let password = std::fs::read_to_string(cell.password_file("ops")).expect("a password");
        let client = ConnectOptions::with_user_and_password("ops".to_owned(), password.trim().to_owned())
            .custom_inbox_prefix("_INBOX_ops")
            .connect(cell.nats_url())
            .await
            .expect("the broker");
        Self { client, cell: cell.id() }
    }

    /// Asks; `None` when nobody answers.
    ///
    /// # Panics
    /// If the answer is no JSON, or larger than the contract allows.
    pub async fn try_ask(&self, verb: Ops, body: &str) -> Option<Answer> {
        let subject = subjects::ops(&self.cell, verb);
        let asked = self.client.request(subject, body.to_owned().into());
        let message = tokio::time::timeout(PATIENCE, asked).await.ok()?.ok()?;
        let code = message.headers.as_ref().and_then(|map| map.get(contract::headers::SERVICE_ERROR_CODE));
        let bytes = message.payload.len();
        assert!(bytes <= MAX_PAYLOAD, "an answer of {bytes} bytes");
        let body = serde_json::from_slice(&message.payload).expect("JSON");
        Some(Answer { code: code.map(ToString::to_string), body, bytes })
    }

    /// # Panics
    /// If nobody answers, and as [`Self::try_ask`].
    pub async fn ask(&self, verb: Ops, body: &str) -> Answer {
        self.try_ask(verb, body).await.unwrap_or_else(|| panic!("nobody answers {}", verb.verb()))
    }

    /// What was asked will be done.
    ///
    /// # Panics
    /// If it is refused.
    pub async fn order(&self, verb: Ops, body: &str) -> Value {
        let answer = wait::until("an answer", PATIENCE, || async {
            let answer = self.ask(verb, body).await;
            // Whom a busy machine kept waiting discards what came meanwhile, and says so.
            (answer.body["reason"] != "broker_unavailable").then_some(answer)
        })
        .await;
        assert_eq!(answer.code, None, "{} is refused: {}", verb.verb(), answer.body);
        answer.body
    }

    pub async fn status(&self) -> Value {
        self.order(Ops::Status, "").await
    }
}

/// The processes of a role in a status, by rank.
#[must_use]
pub fn processes<'a>(status: &'a Value, role: &str) -> Vec<&'a Value> {
    let all = status["processes"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter(|process| process["role"] == role).collect()
}

/// The one process of a role in a status.
///
/// # Panics
/// If there is another number of them.
#[must_use]
pub fn process<'a>(status: &'a Value, role: &str) -> &'a Value {
    match processes(status, role)[..] {
        [process] => process,
        _ => panic!("not one {role}: {status}"),
    }
}
