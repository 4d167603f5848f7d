//! MessagePack with named fields, bounded in size.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Reason};

/// No message on the broker is larger. Media access units above it travel in parts.
pub const MAX_PAYLOAD: usize = 256 * 1024;

/// # Errors
/// `resource_exhausted: payload_too_large` above [`MAX_PAYLOAD`]; `internal` if the value cannot be encoded.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    let bytes = rmp_serde::to_vec_named(value)
        .map_err(|e| Error::new(Reason::Internal, "message could not be encoded").detail(e.to_string()))?;
    check_size(bytes.len())?;
    Ok(bytes)
}

/// # Errors
/// `resource_exhausted: payload_too_large` above [`MAX_PAYLOAD`]; `invalid_argument: malformed` naming the field that is wrong.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    check_size(bytes.len())?;
    rmp_serde::from_slice(bytes).map_err(|e| Error::new(Reason::Malformed, format!("malformed message: {e}")))
}

fn check_size(len: usize) -> Result<(), Error> {
    if len > MAX_PAYLOAD {
        return Err(Error::new(
            Reason::PayloadTooLarge,
            format!("message of {len} bytes: {MAX_PAYLOAD} are allowed"),
        ));
    }
    Ok(())
}
