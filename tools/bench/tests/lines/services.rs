//! All services together.

use serde_json::json;

use crate::{assert_measured, assert_on_cpu, assert_positive, assert_says, lines};

#[test]
fn a_chunk_through_all_services_is_told_by_phase_for_each_world_size() {
    let lines =
        lines("chunk --world-size 1,2 --height 96 --width 160 --chunks 4 --warm-up 2 --change-every 3");
    assert_eq!(lines.len(), 2);
    for (line, world_size) in lines.iter().zip([1, 2]) {
        assert_on_cpu(line);
        for phase in ["chunk", "call", "generator", "decode head", "decode rest", "encode", "link"] {
            assert_measured(&line["phases_ms"][phase], 4);
        }
        assert_positive(line, &["frames_per_second"]);
        assert_positive(&line["broker"], &["median_ms", "p95_ms", "share_of_chunk"]);
        assert_positive(&line["host_peak_mib"], &["gateway", "stage0", "leader"]);
        assert_says(
            line,
            &json!({
                "bench": "chunk", "model": "tiny", "weights": "synthetic:42", "precision": "f32",
                "height": 96, "width": 160, "world_size": world_size, "ranks_share_a_gpu": false,
                "recompute_pass": true, "attention_backend": "torch-eager", "chunks": 4,
                "warm_up_chunks_excluded": 2, "change_every": 3,
            }),
        );
    }
    assert_measured(&lines[1]["phases_ms"]["go round trip"], 4);
}
