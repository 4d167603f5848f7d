//! Parts by themselves.

use serde_json::{Value, json};

use crate::{assert_measured, assert_on_cpu, assert_positive, assert_says, line};

fn assert_generator(line: &Value, chunks: u64) {
    assert_on_cpu(line);
    assert_measured(&line["chunk_ms"], chunks);
    assert_measured(&line["host_phases_ms"]["denoise"], chunks);
    assert_positive(line, &["model_tflop", "tflop_per_s", "gemm_tflop_per_s", "attention_tflop_per_s"]);
    assert_positive(line, &["share_of_gemm", "share_of_ceiling", "ceiling_ms", "load_s", "host_peak_mib"]);
}

#[test]
fn a_generator_alone_says_how_it_streamed_and_how_near_to_the_ceiling() {
    let line = line(
        "generator --device cpu --height 96 --width 160 --chunks 3 --warm-up 2 --bias 0.5 --weights synthetic:7",
    );
    assert_generator(&line, 3);
    assert_measured(&line["host_phases_ms"]["recompute"], 3);
    assert_says(
        &line,
        &json!({
            "bench": "generator", "model": "tiny", "weights": "synthetic:7", "precision": "f32",
            "height": 96, "width": 160, "latent_frames": 3, "window_latent_frames": 6,
            "steps": [1000, 750, 500, 250], "recompute_pass": true, "commit_pass": false, "forwards": 5,
            "bias": 0.5, "attention_backend": "torch-eager", "world_size": 1, "chunks": 3,
            "warm_up_chunks_excluded": 2,
        }),
    );
}

#[test]
fn two_ranks_share_the_work_and_one_line_tells_of_both() {
    let line =
        line("generator --device cpu --world-size 2 --pass commit --precision bf16 --chunks 2 --warm-up 2");
    assert_generator(&line, 2);
    assert_measured(&line["host_phases_ms"]["clean_pass"], 2);
    assert_says(
        &line,
        &json!({
            "world_size": 2, "precision": "bf16", "recompute_pass": false, "commit_pass": true, "forwards": 5,
            "height": 128, "width": 128, "chunks": 2,
        }),
    );
}
