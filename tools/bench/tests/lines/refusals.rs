//! What is not allowed is refused before anything starts: exit code 2, the value and what is allowed.

use crate::bench;

#[test]
fn options_that_are_not_allowed_are_refused_by_value_and_rule() {
    for (args, value, allowed) in [
        ("generator --model wan-2b", "wan-2b", "tiny, demo, wan-1.3b, wan-14b"),
        ("generator --height 100 --width 128", "--height 100", "multiples of 16"),
        ("generator --height 128 --width 0", "--width 0", "multiples of 16"),
        ("generator --chunks 0", "'0'", "1.."),
        ("generator --warm-up 1", "'1'", "2.."),
        ("generator --world-size 3", "--world-size 3", "1, 2, 4 are allowed"),
        ("generator --bias 1.5", "1.5", "above 0 and up to 1"),
        ("generator --bias 0.5 --pass commit", "--bias 0.5", "1 alone is allowed"),
        ("generator --precision f16", "f16", "bf16 or f32"),
        ("generator --device gpu", "gpu", "auto, cpu or cuda:N"),
        ("generator --weights synthetic:x", "synthetic:x", "synthetic:SEED or a path"),
        ("vae --height 100 --width 128", "--height 100", "multiples of 16"),
        ("vae --warm-up 0", "'0'", "1.."),
        ("text --calls 0", "'0'", "1.."),
        ("text --weights synthetic:x", "synthetic:x", "synthetic:SEED or a path"),
        ("link --chunks 0", "'0'", "1.."),
        ("link --link tcp", "tcp", "shm, cuda-ipc or nccl is allowed"),
        ("link --device cpu --link shm,nccl", "link kind nccl", "a process that computes on cpu has shm"),
        ("link --device cpu --link cuda-ipc", "link kind cuda-ipc", "a process that computes on cpu has shm"),
        ("link --device cuda:63 --link nccl", "--device", "cuda:63"),
        ("collective --world-size 1", "--world-size 1", "2 and more are allowed"),
        ("collective --world-size 3", "--world-size 3", "1, 2, 4 are allowed"),
        ("chunk --model wan-2b", "wan-2b", "tiny, demo, wan-1.3b, wan-14b"),
        ("chunk --world-size 1,3", "--world-size 3", "1, 2, 4 are allowed"),
        ("chunk --height 64 --width 64", "--height 64", "128x128"),
        ("chunk --link cuda-ipc", "--link", "a process that computes on cpu has shm"),
        ("chunk --link nccl", "--link", "a process that computes on cpu has shm"),
        ("chunk --stage0-device cuda:63", "--stage0-device", "cuda:63"),
        ("link --stage0-device cuda:63", "--stage0-device", "cuda:63"),
        ("watch --codec av1", "av1", "h264 or vp8 is allowed"),
        ("watch --height 112 --width 112", "--height 112", "tiny serves"),
        ("chunk --link tcp", "tcp", "shm, cuda-ipc or nccl is allowed"),
        ("faults --only worker9", "worker9", "gateway, stage0, leader, worker1, nats"),
        ("faults --faults burn", "burn", "kill, stop"),
        ("faults --rounds 0", "'0'", "1.."),
        ("chunk --chunks 0", "'0'", "1.."),
    ] {
        let output = bench(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args}: {said}");
        assert!(said.contains(value) && said.contains(allowed), "{args}: {said}");
        assert!(output.stdout.is_empty(), "{args}: {}", String::from_utf8_lossy(&output.stdout));
    }
}
