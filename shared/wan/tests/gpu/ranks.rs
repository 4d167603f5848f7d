//! Two processes on one GPU, over NCCL. Rank 0 is this process, and `tests/gpu/run` has given it an `NCCL_HOSTID`.

use std::env;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use collectives::Rendezvous;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use wan::dit::Shard;
use wan::generator::GenerateError;

use crate::stream::{Change, Made};
use crate::{gpu, relative_error};

const RENDEZVOUS: &str = "GPU_TEST_RENDEZVOUS";
const KIND: &str = "GPU_TEST_KIND";
/// The last two are captured calls.
const CHUNKS: usize = 4;

fn made(kind: Kind, shard: Shard) -> Made {
    Made { model: "tiny", size: (128, 128), device: gpu(), kind, shard }
}

fn sharded(kind: Kind, rank: u32, rendezvous: &Rendezvous) -> Vec<Tensor> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let collective = rendezvous.connect(gpu(), rank, 2, deadline).unwrap();
    let mut stream = made(kind, Shard { rank, world: 2 }).stream();
    let chunks = (0..CHUNKS).map(|_| stream.chunk(&*collective, Change::default())).collect();
    assert!(stream.generator.has_graph(0), "{:?}", stream.generator.graphs());
    // The graphs have work of the group.
    stream.generator.drop_graphs();
    chunks
}

fn start_peer(rendezvous: &Rendezvous, test: &str, kind: &str) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(RENDEZVOUS, hex::encode(rendezvous.to_bytes()))
        .env(KIND, kind)
        .env("NCCL_HOSTID", "peer")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn digest(chunks: &[Tensor]) -> String {
    let mut hash = Sha256::new();
    for chunk in chunks {
        let values = Vec::<f32>::try_from(chunk.to_device(Device::Cpu).flatten(0, -1)).unwrap();
        values.iter().for_each(|value| hash.update(value.to_le_bytes()));
    }
    hex::encode(hash.finalize())
}

#[test]
fn two_ranks_make_what_one_makes_and_both_the_same_bytes() {
    for (name, kind, tolerance) in [("f32", Kind::Float, 1e-4), ("bf16", Kind::BFloat16, 0.1)] {
        let whole = made(kind, Shard::WHOLE).solo(CHUNKS);
        let rendezvous = Rendezvous::create(gpu(), 2).unwrap();
        let mut peer = start_peer(&rendezvous, "ranks::peer", name);
        let ours = sharded(kind, 0, &rendezvous);
        let mut said = String::new();
        peer.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(peer.wait().unwrap().success());
        assert!(said.contains(&digest(&ours)), "the ranks differ: {said}");
        for (chunk, (one, two)) in whole.iter().zip(&ours).enumerate() {
            let error = relative_error(two, one);
            println!("tiny, {name}, chunk {chunk}: two ranks are {error:.2e} from one");
            assert!(error < tolerance, "{name} chunk {chunk}: {error:e}");
        }
    }
}

#[test]
fn peer() {
    let Ok(bytes) = env::var(RENDEZVOUS) else { return };
    let rendezvous = Rendezvous::from_bytes(&hex::decode(bytes).unwrap()).unwrap();
    let kind = if env::var(KIND).unwrap() == "f32" { Kind::Float } else { Kind::BFloat16 };
    let _ = gpu();
    println!("digest {}", digest(&sharded(kind, 1, &rendezvous)));
}

/// What a mesh does when a rank dies: the call ends by its deadline, the graphs go, and with them the group.
#[test]
fn a_rank_that_dies_between_captured_calls_ends_the_next_one_and_the_group_is_freed() {
    let rendezvous = Rendezvous::create(gpu(), 2).unwrap();
    let mut peer = start_peer(&rendezvous, "ranks::mortal_peer", "bf16");
    let collective = rendezvous.connect(gpu(), 0, 2, Instant::now() + Duration::from_secs(60)).unwrap();
    let mut stream = made(Kind::BFloat16, Shard { rank: 0, world: 2 }).stream();
    for _ in 0..CHUNKS {
        drop(stream.chunk(&*collective, Change::default()));
    }
    peer.wait().unwrap();
    let started = Instant::now();
    let within = Duration::from_secs(3);
    let error = stream.try_chunk(&*collective, Change::default(), within).unwrap_err();
    println!("a captured call whose peer is dead ended after {:?}: {error}", started.elapsed());
    assert!(matches!(error, GenerateError::Collective(_)), "{error:?}");
    assert!(started.elapsed() < within + Duration::from_secs(2));
    assert!(!stream.generator.has_graph(0));
    collective.abort("a peer is dead");
    assert!(collective.freed(Instant::now() + Duration::from_secs(2)), "the group was not freed");
    // The device goes on.
    let alone = made(Kind::BFloat16, Shard::WHOLE).solo(CHUNKS);
    assert_eq!(alone.len(), CHUNKS);
}

#[test]
fn mortal_peer() {
    let Ok(bytes) = env::var(RENDEZVOUS) else { return };
    let rendezvous = Rendezvous::from_bytes(&hex::decode(bytes).unwrap()).unwrap();
    let _ = gpu();
    let collective = rendezvous.connect(gpu(), 1, 2, Instant::now() + Duration::from_secs(60)).unwrap();
    let mut stream = made(Kind::BFloat16, Shard { rank: 1, world: 2 }).stream();
    for _ in 0..CHUNKS {
        drop(stream.chunk(&*collective, Change::default()));
    }
    // Without a word, as by SIGKILL.
    std::process::abort();
}
