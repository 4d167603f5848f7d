//! What `wan::memory` says against what is read, rank by rank.
#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/source.rs"]
mod source;

use source::Counting;
use tch::{Device, Kind};
use wan::config::ModelConfig;
use wan::dit::{CausalDit, Shard};
use wan::memory;
use wan::text::Umt5;
use wan::vae::Vae;
use wan::weights::SyntheticSource;

fn read(load: impl FnOnce(&Counting<SyntheticSource>)) -> i64 {
    let source = Counting::new(SyntheticSource::new(1));
    load(&source);
    source.read().values().sum::<usize>().try_into().unwrap()
}

#[test]
fn every_rank_reads_exactly_its_shard() {
    for name in ["tiny", "demo"] {
        let model = ModelConfig::named(name).unwrap();
        for world in model.valid_world_sizes() {
            for rank in 0..world {
                let shard = Shard { rank, world };
                let read = read(|source| {
                    CausalDit::load(&model.dit, source, shard, Device::Cpu, Kind::Float).unwrap();
                });
                let said = memory::shard(&model.dit, i64::from(world));
                assert_eq!(read, said, "{name}, rank {rank} of {world}");
            }
        }
    }
}

#[test]
fn stage0_reads_exactly_its_encoder_and_its_vae() {
    for name in ["tiny", "demo"] {
        let model = ModelConfig::named(name).unwrap();
        let text = read(|source| {
            Umt5::load(&model.text, source, Device::Cpu, Kind::Float).unwrap();
        });
        assert_eq!(text, memory::encoder(&model.text), "{name}");
        let vae = read(|source| {
            Vae::load(&model.vae, source, Device::Cpu, Kind::Float).unwrap();
        });
        assert_eq!(vae, memory::autoencoder(&model.vae).read, "{name}");
    }
}
