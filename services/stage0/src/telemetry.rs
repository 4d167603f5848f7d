//! Chunks as metrics.

use std::time::Duration;

use contract::event::ChunkReport;
use runtime::metric_names;

/// A chunk has left the output.
pub(crate) fn chunk(report: &ChunkReport) {
    let seconds = |us: u64| Duration::from_micros(us).as_secs_f64();
    let timings = &report.timings;
    metrics::counter!(metric_names::CHUNKS, "outcome" => "sent").increment(1);
    metrics::histogram!(metric_names::CHUNK_SECONDS).record(seconds(timings.chunk_us));
    if timings.parameter_to_packet_us > 0 {
        metrics::histogram!(metric_names::PARAMETER_SECONDS).record(seconds(timings.parameter_to_packet_us));
    }
    for (phase, us) in [
        ("text", timings.text_us),
        ("envelope", timings.envelope_us),
        ("link", timings.link_us),
        ("call", timings.call_us),
        ("plan", timings.mesh.plan_us),
        ("go", timings.mesh.go_us),
        ("broadcast", timings.mesh.broadcast_us),
        ("generator", timings.mesh.generator_us),
        ("finish", timings.mesh.finish_us),
        ("decode_head", timings.decode_head_us),
        ("decode_rest", timings.decode_rest_us),
        ("encode", timings.encode_us),
    ] {
        metrics::histogram!(metric_names::PHASE_SECONDS, "phase" => phase).record(seconds(us));
    }
}
