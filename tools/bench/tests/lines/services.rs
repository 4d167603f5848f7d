//! All services together.

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use system_tests::{leftovers, wait};

use crate::{assert_measured, assert_on_cpu, assert_positive, assert_says, command, line, lines};

#[tokio::test]
async fn a_benchmark_that_is_killed_takes_its_services_along() {
    let mut bench = command("chunk --chunks 100000").stdout(Stdio::null()).spawn().unwrap();
    // The broker, the gateway, stage0 and the leader.
    let all = || async { Some(leftovers::children(bench.id())).filter(|services| services.len() >= 4) };
    let services = wait::until("its services", Duration::from_secs(60), all).await;
    bench.kill().unwrap();
    bench.wait().unwrap();
    let gone = || async { (!services.iter().any(|pid| leftovers::lives(*pid))).then_some(()) };
    wait::until("the end of its services", Duration::from_secs(5), gone).await;
}

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
                "height": 96, "width": 160, "world_size": world_size, "ranks_share_a_gpu": false, "link": "shm",
                "recompute_pass": true, "attention_backend": "torch-eager", "chunks": 4,
                "warm_up_chunks_excluded": 2, "change_every": 3,
            }),
        );
    }
    // The answer to a go can come after the result of its call.
    let go = &lines[1]["phases_ms"]["go round trip"];
    let count = go["count"].as_u64().unwrap();
    assert!((1..=4).contains(&count), "{go}");
    assert_measured(go, count);
}

#[test]
fn a_viewer_over_webrtc_receives_every_packet_of_its_frames() {
    for codec in ["h264", "vp8"] {
        let line = line(&format!("watch --world-size 2 --codec {codec} --height 96 --width 160 --frames 30"));
        assert_on_cpu(&line);
        assert_measured(&line["between_frames_ms"], 29);
        assert_positive(&line, &["first_frame_ms", "frames_per_second", "packets", "payload_bytes"]);
        assert_says(
            &line,
            &json!({
                "bench": "watch", "model": "tiny", "codec": codec, "height": 96, "width": 160, "world_size": 2,
                "frames": 30, "packets_missing": 0, "link": "shm",
            }),
        );
    }
}

#[test]
fn a_worker_that_dies_and_one_that_stops_cost_what_is_told_and_leave_nothing() {
    let line = line("faults --only worker1 --faults kill,stop --rounds 2");
    assert_on_cpu(&line);
    assert_says(
        &line,
        &json!({
            "bench": "faults", "model": "tiny", "world_size": 2, "rounds": 2, "precision": "f32",
            "left_over": {"processes": 0, "segments": 0},
        }),
    );
    let faults = line["faults"].as_array().unwrap();
    let named: Vec<_> = faults.iter().map(|fault| fault["fault"].as_str().unwrap()).collect();
    assert_eq!(named, ["SIGKILL", "stopped for 3 s"]);
    for fault in faults {
        assert_says(
            fault,
            &json!({"process": "worker1", "rounds": 2, "outcomes": {"the session goes on": 2}}),
        );
        for time in ["noticed_ms", "formed_again_ms", "frames_again_ms"] {
            assert_measured(&fault[time], 2);
        }
    }
    for process in ["gateway", "stage0", "leader", "worker1", "nats"] {
        assert_positive(&line["host_mib"][process], &["first", "last", "most"]);
    }
}
