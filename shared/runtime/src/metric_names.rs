//! Every metric name of the product, its unit as suffix. No other file holds one.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

macro_rules! names {
    ($($kind:ident $name:ident = $text:literal $unit:ident $doc:literal;)*) => {
        $(#[doc = $doc] pub const $name: &str = $text;)*

        /// All names, for documentation and tests.
        pub const ALL: &[&str] = &[$($text),*];

        pub(crate) fn describe() {
            $(names!(@$kind $name, $unit, $doc);)*
        }
    };
    (@counter $name:ident, $unit:ident, $doc:literal) => { describe_counter!($name, Unit::$unit, $doc) };
    (@gauge $name:ident, $unit:ident, $doc:literal) => { describe_gauge!($name, Unit::$unit, $doc) };
    (@histogram $name:ident, $unit:ident, $doc:literal) => { describe_histogram!($name, Unit::$unit, $doc) };
}

names! {
    gauge BUS_CONNECTED = "km_bus_connected" Count "1 while the broker connection is up, label connection.";
    counter BUS_RECONNECTS = "km_bus_reconnects_total" Count "Times the broker connection came back, label connection.";
    counter HTTP_REQUESTS = "km_http_requests_total" Count "HTTP requests, labels route and status.";
    histogram HTTP_SECONDS = "km_http_seconds" Seconds "HTTP requests, label route.";
    gauge SESSIONS = "km_sessions" Count "Sessions that exist now.";
    gauge VIEWERS = "km_viewers" Count "Peer connections that exist now.";
    counter SESSIONS_REFUSED = "km_sessions_refused_total" Count "Sessions refused, label reason.";
    counter CHUNKS = "km_chunks_total" Count "Chunks made, label outcome.";
    histogram CHUNK_SECONDS = "km_chunk_seconds" Seconds "One chunk, call to last access unit.";
    histogram PHASE_SECONDS = "km_phase_seconds" Seconds "One phase of a chunk, label phase.";
    histogram PARAMETER_SECONDS = "km_parameter_seconds" Seconds "A parameter's arrival to the first packet that shows it.";
    counter STATES = "km_states_total" Count "Continuation states of sessions, label outcome.";
    counter FRAMES = "km_frames_total" Count "Video frames encoded.";
    counter FRAMES_DROPPED = "km_frames_dropped_total" Count "Video frames dropped, label reason.";
    counter KEYFRAMES = "km_keyframes_total" Count "Keyframes encoded, label reason.";
    gauge BITRATE_BITS = "km_bitrate_bits_per_second" BitsPerSecond "Target of the encoder.";
    counter MEDIA_BYTES = "km_media_bytes_total" Bytes "Access unit bytes published or forwarded.";
    counter MEDIA_GAPS = "km_media_gaps_total" Count "Gaps in the sequence of media.out.";
    gauge MESH_STATE = "km_mesh_state" Count "1 for the state the mesh is in, label state.";
    gauge MESH_EPOCH = "km_mesh_epoch" Count "Mesh epoch.";
    gauge WORLD_SIZE = "km_world_size" Count "Ranks of the mesh.";
    counter CALLS = "km_calls_total" Count "Mesh calls, labels action and outcome.";
    histogram CALL_SECONDS = "km_call_seconds" Seconds "Mesh calls, label action.";
    histogram GENERATOR_SECONDS = "km_generator_seconds" Seconds "The generator's part of a call.";
    counter STALLS = "km_stalls_total" Count "Times this process noticed that it did not run.";
    counter LOG_LINES_DROPPED = "km_log_lines_dropped_total" Count "Log lines dropped because stderr was not read.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::ALL;

    #[test]
    fn names_are_unique_prefixed_and_lower_case() {
        assert_eq!(ALL.iter().collect::<BTreeSet<_>>().len(), ALL.len());
        for name in ALL {
            assert!(
                name.starts_with("km_") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                "{name}"
            );
        }
    }
}
