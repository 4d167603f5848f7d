//! NATS header names.

/// Milliseconds the request has left when sent ([`crate::Budget`]).
pub const BUDGET_MS: &str = "Km-Budget-Ms";
/// [`crate::CONTRACT_VERSION`] of the sender.
pub const CONTRACT: &str = "Km-Contract";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// ADR-32: numeric error code (the HTTP status of the class).
pub const SERVICE_ERROR_CODE: &str = "Nats-Service-Error-Code";
/// ADR-32: error text, safe for a client.
pub const SERVICE_ERROR: &str = "Nats-Service-Error";
