//! Calls as CUDA graphs make what the same operations make one by one.

use collectives::Solo;
use tch::{Kind, Tensor};
use wan::config::Family;
use wan::dit::Shard;
use wan::generator::Graphs;

use crate::gpu;
use crate::stream::{Change, Made, Stream};

const SAME: Change = Change { prompt: None, bias: Some(1.0), reset_kv_cache: false };
const NEW: Change = Change { prompt: Some(9), ..SAME };
const BIAS: Change = Change { bias: Some(0.3), ..SAME };
const RESET: Change = Change { reset_kv_cache: true, ..SAME };

fn stream(family: Option<Family>, size: (u32, u32)) -> Stream {
    Made { model: "tiny", family, size, device: gpu(), kind: Kind::BFloat16, shard: Shard::WHOLE }.stream()
}

/// Which chunks of these were captured calls; their bytes are those of calls that were not.
fn captured<const N: usize>(family: Option<Family>, changes: [Change; N]) -> [bool; N] {
    let mut captured = stream(family, (128, 128));
    let mut plain = stream(family, (128, 128));
    plain.generator.without_graphs("to compare");
    let mut index = 0;
    changes.map(|change| {
        let of = |stream: &mut Stream| stream.chunk(&Solo::new(), change).to_device(tch::Device::Cpu);
        let (ours, theirs) = (of(&mut captured), of(&mut plain));
        assert_eq!(captured.generator.graphs(), &Graphs::On, "chunk {index}");
        assert!(ours.equal(&theirs), "chunk {index}: {}", crate::relative_error(&ours, &theirs));
        assert!(!plain.generator.has_graph(0));
        index += 1;
        captured.generator.has_graph(0)
    })
}

#[test]
fn captured_calls_make_the_same_bytes_and_count_the_same_forwards() {
    let changes = [SAME, SAME, SAME, SAME, NEW, SAME, BIAS, BIAS, BIAS, RESET, SAME, SAME];
    // The first chunk has no context and the second no predecessor; each change of the bias is another call.
    let expected = [0, 0, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1].map(|graph| graph == 1);
    assert_eq!(captured(None, changes), expected);
}

#[test]
fn captured_calls_of_a_rolling_stream_make_the_same_bytes() {
    for sink_size in [0, 1] {
        let family = Family::SelfForcing { sink_size };
        // Two chunks fill the window, the third is the first that moves it.
        let expected = [0, 0, 0, 1, 1, 1, 1, 1].map(|graph| graph == 1);
        assert_eq!(captured(Some(family), [SAME, SAME, SAME, SAME, SAME, NEW, SAME, SAME]), expected);
    }
}

/// Bytes that libtorch holds from the driver.
fn reserved() -> i64 {
    torch_extra::memory(gpu()).unwrap().unwrap().reserved
}

/// As many chunks of each bias as a capture takes.
fn capture_both(stream: &mut Stream) {
    for bias in [1.0, 0.3] {
        for _ in 0..3 {
            drop::<Tensor>(stream.chunk(&Solo::new(), Change { bias: Some(bias), ..Change::default() }));
        }
        assert!(stream.generator.has_graph(0), "{:?}", stream.generator.graphs());
    }
}

#[test]
fn graphs_that_come_and_go_take_no_more_memory() {
    let mut stream = stream(None, (128, 128));
    let held = [(); 6].map(|()| {
        capture_both(&mut stream);
        // As for another formation of the mesh.
        stream.generator.drop_graphs();
        stream.restart();
        reserved()
    });
    println!("bytes held after each round: {held:?}");
    assert_eq!(held[2], held[5]);
}

#[test]
fn the_memory_of_graphs_goes_with_their_generator() {
    let held = [(); 6].map(|()| {
        capture_both(&mut stream(None, (128, 128)));
        reserved()
    });
    println!("bytes held after each generator: {held:?}");
    assert_eq!(held[2], held[5]);
}
