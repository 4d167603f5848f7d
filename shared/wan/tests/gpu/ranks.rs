//! Two processes on one GPU, over NCCL. Rank 0 is this process, and `tests/gpu/run` has given it an `NCCL_HOSTID`.

use std::env;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use collectives::Rendezvous;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use wan::dit::Shard;

use crate::stream::Made;
use crate::{gpu, relative_error};

const RENDEZVOUS: &str = "GPU_TEST_RENDEZVOUS";
const KIND: &str = "GPU_TEST_KIND";
const CHUNKS: usize = 3;

fn made(kind: Kind, shard: Shard) -> Made {
    Made { model: "tiny", size: (128, 128), device: gpu(), kind, shard }
}

fn sharded(kind: Kind, rank: u32, rendezvous: &Rendezvous) -> Vec<Tensor> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let collective = rendezvous.connect(gpu(), rank, 2, deadline).unwrap();
    made(kind, Shard { rank, world: 2 }).chunks(&*collective, CHUNKS)
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
        let mut peer = Command::new(env::current_exe().unwrap())
            .args(["--exact", "ranks::peer", "--nocapture", "--test-threads=1"])
            .env(RENDEZVOUS, hex::encode(rendezvous.to_bytes()))
            .env(KIND, name)
            .env("NCCL_HOSTID", "peer")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
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
