//! Headers and bodies as they stand on the wire.

use std::time::{Duration, Instant};

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use contract::{Budget, CONTRACT_VERSION, Deadline, Error, Reason, codec, headers};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The budget of a request that carries none, as from a plain NATS command line.
pub const DEFAULT_BUDGET: Budget = Budget::from_secs(5);
/// A longer budget is cut to this.
pub const MAX_BUDGET: Budget = Budget::from_secs(600);

pub(crate) fn publish_headers() -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert(headers::CONTRACT, CONTRACT_VERSION.to_string());
    map
}

pub(crate) fn request_headers(budget: Budget, traceparent: Option<String>) -> HeaderMap {
    let mut map = publish_headers();
    map.insert(headers::BUDGET_MS, budget.as_millis().to_string());
    if let Some(traceparent) = traceparent {
        map.insert(headers::TRACEPARENT, traceparent);
    }
    map
}

pub(crate) fn header<'a>(map: Option<&'a HeaderMap>, name: &str) -> Option<&'a str> {
    map.and_then(|map| map.get(name)).map(async_nats::HeaderValue::as_str)
}

/// # Errors
/// `malformed` naming the header and its value.
pub(crate) fn deadline(map: Option<&HeaderMap>, received: Instant) -> Result<Deadline, Error> {
    let budget = match header(map, headers::BUDGET_MS) {
        None => DEFAULT_BUDGET,
        Some(text) => Budget::from_millis(text.trim().parse().map_err(|_| {
            let name = headers::BUDGET_MS;
            Error::new(
                Reason::Malformed,
                format!("header {name} is {text:?}: whole milliseconds are expected"),
            )
        })?),
    };
    Ok(Deadline::after(received, budget.min(MAX_BUDGET)))
}

/// Strangers need not name a version; whoever names one must name ours.
///
/// # Errors
/// `unsupported_version` naming both.
pub(crate) fn check_version(map: Option<&HeaderMap>) -> Result<(), Error> {
    match header(map, headers::CONTRACT) {
        Some(theirs) if theirs.trim() != CONTRACT_VERSION.to_string() => Err(Error::new(
            Reason::UnsupportedVersion,
            format!("contract version {theirs}: this service speaks {CONTRACT_VERSION}"),
        )),
        _ => Ok(()),
    }
}

/// How an endpoint's bodies are written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Encoding {
    MessagePack,
    Json,
}

impl Encoding {
    pub(crate) fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, Error> {
        match self {
            Self::MessagePack => codec::decode(bytes),
            Self::Json if bytes.len() > codec::MAX_PAYLOAD => Err(Error::new(
                Reason::PayloadTooLarge,
                format!("message of {} bytes: {} are allowed", bytes.len(), codec::MAX_PAYLOAD),
            )),
            Self::Json => {
                // Nothing at all means null, or for a message of optional fields the empty one.
                let parsed = match bytes.trim_ascii() {
                    [] => serde_json::from_str("null").or_else(|_| serde_json::from_str("{}")),
                    text => serde_json::from_slice(text),
                };
                // What is no JSON, and what is but says something else than is understood here.
                let what = |e: &serde_json::Error| {
                    if e.is_data() { "message not understood" } else { "malformed JSON" }
                };
                parsed.map_err(|e| Error::new(Reason::Malformed, format!("{}: {e}", what(&e))))
            }
        }
    }

    pub(crate) fn encode<T: Serialize>(self, value: &T) -> Result<Bytes, Error> {
        match self {
            Self::MessagePack => codec::encode(value).map(Bytes::from),
            Self::Json => serde_json::to_vec(value).map(Bytes::from).map_err(|e| {
                Error::new(Reason::Internal, "message could not be encoded").detail(e.to_string())
            }),
        }
    }

    /// ADR-32 headers and the body that says the same in full.
    pub(crate) fn error_reply(self, error: &Error) -> (HeaderMap, Bytes) {
        let mut map = publish_headers();
        map.insert(headers::SERVICE_ERROR_CODE, error.class().http_status().to_string());
        // A header is one line.
        map.insert(headers::SERVICE_ERROR, error.to_string().replace(['\r', '\n'], " "));
        let body = match self {
            Self::MessagePack => codec::encode(error).map(Bytes::from),
            Self::Json => {
                let body = serde_json::json!({
                    "class": error.class(),
                    "reason": error.reason,
                    "retryable": error.retryable(),
                    "message": error.message,
                    "detail": error.detail,
                });
                Ok(Bytes::from(body.to_string()))
            }
        };
        (map, body.unwrap_or_default())
    }
}

/// The error that `reply` carries, if it does.
pub(crate) fn error_of(reply: &Message) -> Option<Error> {
    let map = reply.headers.as_ref();
    let code = header(map, headers::SERVICE_ERROR_CODE)?;
    if let Ok(error) = codec::decode::<Error>(&reply.payload) {
        return Some(error);
    }
    let text = header(map, headers::SERVICE_ERROR).unwrap_or_default();
    Some(
        Error::new(Reason::Internal, "the service answered an unknown error")
            .detail(format!("{code} {text}")),
    )
}

/// What is left until `deadline`, now.
pub(crate) fn left(deadline: Deadline) -> Duration {
    deadline.left(Instant::now()).duration()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(name, value);
        map
    }

    #[test]
    fn a_missing_budget_is_the_default_one_and_a_huge_one_is_cut() {
        let now = Instant::now();
        assert_eq!(deadline(None, now).unwrap().left(now), DEFAULT_BUDGET);
        let huge = one(headers::BUDGET_MS, &u64::MAX.to_string());
        assert_eq!(deadline(Some(&huge), now).unwrap().left(now), MAX_BUDGET);
        let bad = one(headers::BUDGET_MS, "soon");
        let error = deadline(Some(&bad), now).unwrap_err();
        assert_eq!(error.reason, Reason::Malformed);
        assert!(error.message.contains("Km-Budget-Ms") && error.message.contains("soon"));
    }

    #[test]
    fn another_contract_version_is_refused_naming_both() {
        let error = check_version(Some(&one(headers::CONTRACT, "99"))).unwrap_err();
        assert_eq!(error.reason, Reason::UnsupportedVersion);
        assert!(error.message.contains("99") && error.message.contains(&CONTRACT_VERSION.to_string()));
        assert!(check_version(None).is_ok());
    }

    #[test]
    fn what_is_no_json_is_told_from_json_that_does_not_fit() {
        let told = |text: &str| Encoding::Json.decode::<u32>(text.as_bytes()).unwrap_err().message;
        assert!(told("1 2").starts_with("malformed JSON: "), "{}", told("1 2"));
        assert!(told("\"one\"").starts_with("message not understood: "), "{}", told("\"one\""));
    }

    #[test]
    fn an_empty_json_body_is_null() {
        assert_eq!(Encoding::Json.decode::<Option<u8>>(b" ").unwrap(), None);
    }
}
