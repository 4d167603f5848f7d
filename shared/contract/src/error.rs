//! The one catalogue of errors, and its one mapping to each transport.
//!
//! A [`Reason`] is stable and belongs to exactly one [`Class`]. `message` is safe to show to a client and names the
//! offending value and what is allowed; `detail` is for operators and never leaves the cell.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    InvalidArgument,
    Unsupported,
    NotFound,
    Unauthenticated,
    Forbidden,
    FailedPrecondition,
    Conflict,
    DeadlineExceeded,
    Unavailable,
    ResourceExhausted,
    Aborted,
    Internal,
}

impl Class {
    pub const ALL: [Self; 12] = [
        Self::InvalidArgument,
        Self::Unsupported,
        Self::NotFound,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::FailedPrecondition,
        Self::Conflict,
        Self::DeadlineExceeded,
        Self::Unavailable,
        Self::ResourceExhausted,
        Self::Aborted,
        Self::Internal,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::Unsupported => "unsupported",
            Self::NotFound => "not_found",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::FailedPrecondition => "failed_precondition",
            Self::Conflict => "conflict",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Unavailable => "unavailable",
            Self::ResourceExhausted => "resource_exhausted",
            Self::Aborted => "aborted",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status, which is also the ADR-32 service error code.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument | Self::Unsupported | Self::FailedPrecondition => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict | Self::Aborted => 409,
            Self::ResourceExhausted => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }
}

macro_rules! reasons {
    ($($variant:ident $text:literal $class:ident $retry:literal $doc:literal;)*) => {
        /// Stable names of everything that can go wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Reason { $(#[doc = $doc] $variant),* }

        impl Reason {
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            #[must_use]
            pub fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class),* }
            }

            /// Whether the same request may succeed later without being changed.
            #[must_use]
            pub fn retryable(self) -> bool {
                match self { $(Self::$variant => $retry),* }
            }
        }
    };
}

reasons! {
    Malformed "malformed" InvalidArgument false "The bytes are not the expected message.";
    BadField "bad_field" InvalidArgument false "A field's value is not allowed.";
    BadShape "bad_shape" InvalidArgument false "A tensor's shape is not the one the call implies.";
    BadDtype "bad_dtype" InvalidArgument false "A tensor's dtype is not the one the link carries.";
    MissingTensor "missing_tensor" InvalidArgument false "A tensor the call needs is not in it.";
    NotFinite "not_finite" InvalidArgument false "A value is NaN or infinite.";
    BadSteps "bad_steps" InvalidArgument false "The denoising steps are not strictly descending.";
    CallCount "call_count" InvalidArgument false "expected_generator_calls is not what the plan implies.";
    BadSdp "bad_sdp" InvalidArgument false "The SDP cannot be used.";
    NoCommonCodec "no_common_codec" InvalidArgument false "The offer has neither H.264 nor VP8.";
    UnsupportedVersion "unsupported_version" Unsupported false "The message's version is not known.";
    UnsupportedParameter "unsupported_parameter" Unsupported false "The running plan cannot do what the key asks.";
    UnsupportedModel "unsupported_model" Unsupported false "The cell serves another model.";
    UnsupportedSize "unsupported_size" Unsupported false "The cell does not serve this size.";
    UnsupportedWorldSize "unsupported_world_size" Unsupported false "The world size does not divide the heads.";
    NoSuchSession "no_such_session" NotFound false "No session has this id here.";
    NoSuchResource "no_such_resource" NotFound false "There is no such thing.";
    BadToken "bad_token" Unauthenticated false "The bearer or resume token is missing or wrong.";
    ForeignOrigin "foreign_origin" Forbidden false "The web page that asks is of an origin that may not use the server.";
    ForeignHost "foreign_host" Forbidden false "The request names a host that a server on loopback does not answer to.";
    NotLoaded "not_loaded" FailedPrecondition true "The pipeline is not loaded yet.";
    NoLease "no_lease" FailedPrecondition false "The caller holds no lease: HELLO comes first.";
    UnknownConditioning "unknown_conditioning" FailedPrecondition true "The mesh does not hold this conditioning digest: send the tensor.";
    StaleSlot "stale_slot" Conflict false "The link slot holds another generation.";
    SlotBusy "slot_busy" Conflict true "The link slot is still held or quarantined.";
    LeaseHeld "lease_held" Conflict true "Another controller holds the lease.";
    Fenced "fenced" Conflict false "A newer lease or mesh epoch exists: the sender is history.";
    StaleCall "stale_call" Conflict false "A call id at or below one already seen, with other content.";
    StaleEpoch "stale_epoch" Conflict true "The message belongs to another mesh or cache epoch.";
    TpPlanMismatch "tp_plan_mismatch" Conflict false "Leader and worker are set to different tensor-parallel plans.";
    WeightsMismatch "weights_mismatch" Conflict false "Leader and worker hold different weights.";
    BuildMismatch "build_mismatch" Conflict false "Leader and worker differ in build, contract, dtype, device or attention backend.";
    MeshFull "mesh_full" Conflict true "The mesh has all its ranks.";
    SessionExists "session_exists" Conflict false "A session with this id is running.";
    BudgetSpent "budget_spent" DeadlineExceeded true "The request's budget ran out.";
    NoResponders "no_responders" Unavailable true "Nobody serves the subject.";
    BrokerUnavailable "broker_unavailable" Unavailable true "The NATS connection is down.";
    NotReady "not_ready" Unavailable true "The service is loading, warming or forming.";
    Busy "busy" Unavailable true "Another call is running.";
    Draining "draining" Unavailable true "The service is stopping and takes no new work.";
    Recovering "recovering" Unavailable true "The mesh lost a rank and is forming again.";
    PermissionDenied "permission_denied" Internal false "The broker refused the subject to this account.";
    TooManySessions "too_many_sessions" ResourceExhausted true "The cell or gateway has no free session.";
    PayloadTooLarge "payload_too_large" ResourceExhausted false "The message, body or SDP is too large.";
    QueueFull "queue_full" ResourceExhausted true "A bounded queue is full.";
    SessionEnded "session_ended" Aborted false "The session ended.";
    CallAborted "call_aborted" Aborted true "The call was cancelled or its mesh epoch ended.";
    RankLost "rank_lost" Aborted true "A rank of the mesh died or stopped.";
    CountMismatch "count_mismatch" Internal false "Observed and expected generator calls differ.";
    DigestMismatch "digest_mismatch" Internal false "Ranks disagree on their output.";
    Internal "internal" Internal false "A defect of kinemesh.";
}

/// An error as it travels: in NATS bodies, HTTP bodies, data channel messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Error {
    pub reason: Reason,
    /// Safe for a client; names the offending value and what is allowed.
    pub message: String,
    /// For operators only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Error {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), detail: None }
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn class(&self) -> Class {
        self.reason.class()
    }

    #[must_use]
    pub fn retryable(&self) -> bool {
        self.reason.retryable()
    }

    /// The same error without what only operators may read.
    #[must_use]
    pub fn for_client(&self) -> ClientError {
        ClientError {
            class: self.class(),
            reason: self.reason,
            retryable: self.retryable(),
            message: self.message.clone(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.class().as_str(), self.reason.as_str(), self.message)
    }
}

/// What a client sees of an [`Error`], over HTTP and on the data channel alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientError {
    pub class: Class,
    pub reason: Reason,
    pub retryable: bool,
    pub message: String,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_wire_name_of_each_reason_and_class_is_its_stable_text() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
        for class in Class::ALL {
            assert_eq!(serde_json::to_value(class).unwrap(), class.as_str());
            assert!((400..=599).contains(&class.http_status()));
        }
        let names: BTreeSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }

    #[test]
    fn a_client_never_sees_the_operator_detail() {
        let error = Error::new(Reason::BadField, "noise_scale is 2: 0 to 1 is allowed").detail("secret");
        assert!(!serde_json::to_string(&error.for_client()).unwrap().contains("secret"));
        assert_eq!(error.to_string(), "invalid_argument: bad_field: noise_scale is 2: 0 to 1 is allowed");
    }
}
