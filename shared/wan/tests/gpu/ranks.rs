//! Two processes on one GPU, over NCCL. Rank 0 is this process, and `tests/gpu/run` has given it an `NCCL_HOSTID`.

use std::env;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use collectives::Rendezvous;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use wan::config::Family;
use wan::dit::Shard;
use wan::generator::GenerateError;

use crate::stream::{Change, Made};
use crate::{gpu, relative_error};

const RENDEZVOUS: &str = "GPU_TEST_RENDEZVOUS";
const VARIANT: &str = "GPU_TEST_VARIANT";
/// The last two are captured calls.
const CHUNKS: usize = 5;

/// What the ranks stream, by a name that a child process is told.
#[derive(Clone, Copy)]
struct Variant {
    name: &'static str,
    kind: Kind,
    family: Option<Family>,
    /// How far two ranks may be from one.
    tolerance: f64,
}

const VARIANTS: [Variant; 3] = [
    Variant { name: "f32", kind: Kind::Float, family: None, tolerance: 1e-4 },
    BF16,
    Variant { name: "bf16, rolling", family: Some(Family::SelfForcing { sink_size: 1 }), ..BF16 },
];
const BF16: Variant = Variant { name: "bf16", kind: Kind::BFloat16, family: None, tolerance: 0.1 };

fn made(variant: Variant, shard: Shard) -> Made {
    let Variant { kind, family, .. } = variant;
    Made { model: "tiny", family, size: (128, 128), device: gpu(), kind, shard }
}

fn sharded(variant: Variant, rank: u32, rendezvous: &Rendezvous) -> Vec<Tensor> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let collective = rendezvous.connect(gpu(), rank, 2, deadline).unwrap();
    let mut stream = made(variant, Shard { rank, world: 2 }).stream();
    let chunks = (0..CHUNKS).map(|_| stream.chunk(&*collective, Change::default())).collect();
    assert!(stream.generator.has_graph(0), "{:?}", stream.generator.graphs());
    // The graphs have work of the group.
    stream.generator.drop_graphs();
    chunks
}

fn start_peer(rendezvous: &Rendezvous, test: &str, variant: Variant) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(RENDEZVOUS, hex::encode(rendezvous.to_bytes()))
        .env(VARIANT, variant.name)
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
    for variant @ Variant { name, tolerance, .. } in VARIANTS {
        let whole = made(variant, Shard::WHOLE).solo(CHUNKS);
        let rendezvous = Rendezvous::create(gpu(), 2).unwrap();
        let mut peer = start_peer(&rendezvous, "ranks::peer", variant);
        let ours = sharded(variant, 0, &rendezvous);
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
    let name = env::var(VARIANT).unwrap();
    let variant = VARIANTS.into_iter().find(|variant| variant.name == name).unwrap();
    let _ = gpu();
    println!("digest {}", digest(&sharded(variant, 1, &rendezvous)));
}

/// What a mesh does when a rank dies: the call ends by its deadline, the graphs go, and with them the group.
#[test]
fn a_rank_that_dies_between_captured_calls_ends_the_next_one_and_the_group_is_freed() {
    let rendezvous = Rendezvous::create(gpu(), 2).unwrap();
    let mut peer = start_peer(&rendezvous, "ranks::mortal_peer", BF16);
    let collective = rendezvous.connect(gpu(), 0, 2, Instant::now() + Duration::from_secs(60)).unwrap();
    let mut stream = made(BF16, Shard { rank: 0, world: 2 }).stream();
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
    let alone = made(BF16, Shard::WHOLE).solo(CHUNKS);
    assert_eq!(alone.len(), CHUNKS);
}

/// What a leader goes through when its workers die one after the other: the same weights in the same process, another group and
/// other graphs each time.
#[test]
fn groups_that_come_and_go_with_graphs_leave_the_memory_of_the_device_as_it_was() {
    let mut stream = made(BF16, Shard { rank: 0, world: 2 }).stream();
    let mut free = Vec::new();
    for _ in 0..5 {
        let rendezvous = Rendezvous::create(gpu(), 2).unwrap();
        let mut peer = start_peer(&rendezvous, "ranks::mortal_peer", BF16);
        let collective = rendezvous.connect(gpu(), 0, 2, Instant::now() + Duration::from_secs(60)).unwrap();
        stream.restart();
        for _ in 0..CHUNKS {
            drop(stream.chunk(&*collective, Change::default()));
        }
        assert!(stream.generator.has_graph(0));
        peer.wait().unwrap();
        stream.generator.drop_graphs();
        collective.abort("a peer is dead");
        assert!(collective.freed(Instant::now() + Duration::from_secs(2)), "the group was not freed");
        free.push(device::Memory::of(gpu()).unwrap().free / (1 << 20));
    }
    println!("MiB free after each group: {free:?}");
    assert_eq!(free[1], free[4]);
}

#[test]
fn mortal_peer() {
    let Ok(bytes) = env::var(RENDEZVOUS) else { return };
    let rendezvous = Rendezvous::from_bytes(&hex::decode(bytes).unwrap()).unwrap();
    let _ = gpu();
    let collective = rendezvous.connect(gpu(), 1, 2, Instant::now() + Duration::from_secs(60)).unwrap();
    let mut stream = made(BF16, Shard { rank: 1, world: 2 }).stream();
    for _ in 0..CHUNKS {
        drop(stream.chunk(&*collective, Change::default()));
    }
    // Without a word, as by SIGKILL.
    std::process::abort();
}
