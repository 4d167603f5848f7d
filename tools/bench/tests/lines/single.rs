//! Parts by themselves.

use serde_json::{Value, json};

use crate::{assert_measured, assert_on_cpu, assert_positive, assert_says, line, lines};

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
            "bias": 0.5, "attention_backend": "torch-eager", "elementwise": "torch-eager", "missing": [],
            "world_size": 1, "chunks": 3, "parts_ms": null, "tensors_peak_mib": null, "reserved_peak_mib": null,
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

#[test]
fn decoding_a_chunk_and_its_head_are_two_lines() {
    let lines = lines("vae --device cpu --height 96 --width 160 --chunks 2 --warm-up 1");
    let [chunk, head] = lines.try_into().unwrap();
    for line in [&chunk, &head] {
        assert_on_cpu(line);
        assert_positive(line, &["load_s", "threads", "host_peak_mib"]);
        assert_measured(&line["phases_ms"]["first latent"], 2);
        assert_says(
            line,
            &json!({
                "bench": "vae", "model": "tiny", "weights": "synthetic:42", "precision": "f32", "height": 96,
                "width": 160, "latent_frames": 3, "chunks": 2, "warm_up_chunks_excluded": 1,
            }),
        );
    }
    assert_says(&chunk, &json!({"part": "chunk", "frames": 12}));
    assert_measured(&chunk["chunk_ms"], 2);
    assert_measured(&chunk["phases_ms"]["rest"], 2);
    assert_says(&head, &json!({"part": "head"}));
    assert_measured(&head["head_ms"], 2);
    assert_measured(&head["phases_ms"]["encode one frame"], 2);
}

#[test]
fn a_prompt_is_encoded_and_its_tokens_are_counted() {
    let line = line("text --device cpu --prompt fox --calls 3 --warm-up 1");
    assert_on_cpu(&line);
    assert_measured(&line["encode_ms"], 3);
    // A byte each, and the end mark.
    assert_says(
        &line,
        &json!({
            "bench": "text", "model": "tiny", "weights": "synthetic:42", "precision": "f32", "prompt": "fox",
            "tokens": 4, "calls": 3, "warm_up_calls_excluded": 1,
        }),
    );
}

#[test]
fn latents_cross_the_link_both_ways_and_a_request_the_broker() {
    let line = line("link --device cpu --height 96 --width 160 --chunks 5 --warm-up 1");
    assert_on_cpu(&line);
    for times in ["to_mesh_ms", "from_mesh_ms", "broker_round_trip_ms"] {
        assert_measured(&line[times], 5);
    }
    assert_says(
        &line,
        &json!({
            "bench": "link", "link": "shm", "model": "tiny", "precision": "f32", "shape": [1, 3, 16, 12, 20],
            "bytes": 4 * 3 * 16 * 12 * 20, "broker_bytes": 200, "chunks": 5, "warm_up_chunks_excluded": 1,
            "stage0_device": "cpu", "ends_share_a_gpu": false,
        }),
    );
}

#[test]
fn every_link_that_is_asked_for_has_a_line() {
    let lines = lines("link --device cpu --link shm,shm --chunks 2 --warm-up 0");
    assert_eq!(lines.iter().map(|line| line["link"].as_str().unwrap()).collect::<Vec<_>>(), ["shm", "shm"]);
    lines.iter().for_each(|line| assert_measured(&line["to_mesh_ms"], 2));
}

#[test]
fn every_collective_is_measured_at_the_sizes_of_a_chunk() {
    let line = line("collective --device cpu --world-size 2 --calls 4 --warm-up 1");
    assert_on_cpu(&line);
    assert_says(
        &line,
        &json!({
            "bench": "collective", "transport": "loopback", "model": "tiny", "precision": "f32", "world_size": 2,
            "height": 128, "width": 128, "calls": 4, "warm_up_calls_excluded": 1,
        }),
    );
    let operations = line["operations"].as_array().unwrap();
    operations.iter().for_each(|operation| assert_measured(&operation["us"], 4));
    let named: Vec<_> =
        operations.iter().map(|row| (row["operation"].as_str().unwrap(), row["shape"].clone())).collect();
    let expected = [
        ("all_reduce", json!([1, 192, 128])),
        ("all_reduce", json!([1, 192, 2])),
        ("all_reduce", json!([4])),
        ("broadcast", json!([1, 3, 16, 16, 16])),
        ("broadcast", json!([1, 64, 64])),
        ("barrier", json!([0])),
    ];
    assert_eq!(named, expected);
}
