//! Which parameters a model reads: all of a checkpoint under their original names, and on each rank only its share.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::source::Counting;
use support::{Golden, KeyMap, device, json, json_if_present, path};
use tch::Kind;
use wan::config::{DitConfig, ModelConfig, VaeConfig};
use wan::dit::{CausalDit, Shard};
use wan::text::Umt5;
use wan::vae::Vae;
use wan::weights::{SafetensorsSource, SyntheticSource, TensorSource, WeightsError};

/// What a model reads of a file, by name, is all that the file has, and what the map to another project's names knows.
/// Where the set has the same values under those names too, they are equal.
fn check_names(
    weights: &str,
    map: &str,
    others: Option<&str>,
    load: impl FnOnce(&dyn TensorSource) -> Result<(), WeightsError>,
) {
    let source = Counting::new(SafetensorsSource::open(path(&format!("{weights}.safetensors"))).unwrap());
    load(&source).unwrap();
    let read: BTreeSet<String> = source.read().into_keys().collect();
    let ours = Golden::open(weights);
    let names: BTreeSet<String> = ours.names().map(str::to_owned).collect();
    assert_eq!(read, names, "{weights}: names");
    let Some(map) = json_if_present::<KeyMap>(map) else { return };
    let mapped: BTreeSet<String> = map.keys().cloned().collect();
    assert_eq!(read, mapped, "{weights}: names of the map");
    if let Some(theirs) = others.and_then(Golden::open_if_present) {
        for (name, other) in map {
            assert!(ours.get(&name).equal(&theirs.get(&other)), "{name} is not {other}");
        }
    }
}

#[test]
fn golden_names_of_the_transformer() {
    let config: DitConfig = json("causal_dit_config.json");
    check_names("causal_dit_weights", "dit_key_map_to_diffusers.json", None, |source| {
        CausalDit::load(&config, source, Shard::WHOLE, device(), Kind::Float).map(drop)
    });
}

#[test]
fn golden_names_of_the_text_encoder() {
    let config = json("umt5_config.json");
    check_names("umt5_weights", "umt5_key_map_to_hf.json", Some("umt5_weights_hf"), |source| {
        Umt5::load(&config, source, device(), Kind::Float).map(drop)
    });
}

#[test]
fn golden_names_of_the_vae() {
    let config = support::vae::config();
    let others = Some("wan_vae_weights_diffusers");
    check_names("wan_vae_weights", "wan_vae_key_map_to_diffusers.json", others, |source| {
        Vae::load(&config, source, device(), Kind::Float).map(drop)
    });
}

/// Elements that one rank reads, by name.
fn read_by(config: &DitConfig, source: impl TensorSource, shard: Shard) -> BTreeMap<String, usize> {
    let source = Counting::new(source);
    CausalDit::load(config, &source, shard, device(), Kind::Float).unwrap();
    source.read()
}

#[test]
fn golden_a_rank_reads_its_share_of_the_sharded_weights_and_no_more() {
    let config: DitConfig = json("causal_dit_config.json");
    let open = || SafetensorsSource::open(path("causal_dit_weights.safetensors")).unwrap();
    let whole = read_by(&config, open(), Shard::WHOLE);
    // Heads and feed-forward features are split; the biases that are added after the sum are not.
    let split = |name: &str| {
        let rows = [".q.", ".k.", ".v.", ".norm_q.", ".norm_k.", ".ffn.0."];
        let columns = [".o.weight", ".ffn.2.weight"];
        name.starts_with("blocks.") && rows.iter().chain(&columns).any(|part| name.contains(part))
    };
    for world in config.valid_world_sizes() {
        for rank in 0..world {
            for (name, read) in read_by(&config, open(), Shard { rank, world }) {
                let share = if split(&name) { world as usize } else { 1 };
                assert_eq!(read * share, whole[&name], "{name} on rank {rank} of {world}");
            }
        }
    }
}

#[test]
fn half_of_a_large_checkpoint_stays_unread_on_a_rank_of_two() {
    // The more and the wider the blocks, the less is what every rank needs whole: embeddings and modulations.
    let config =
        DitConfig { dim: 512, ffn_dim: 2048, num_layers: 8, ..ModelConfig::named("tiny").unwrap().dit };
    let total = |shard| read_by(&config, SyntheticSource::new(1), shard).into_values().sum::<usize>() as f64;
    let part = total(Shard { rank: 0, world: 2 }) / total(Shard::WHOLE);
    assert!((0.5..0.6).contains(&part), "rank 0 of 2 reads {part} of all");
}

#[test]
fn a_vae_with_attention_outside_its_middle_is_refused() {
    let config = VaeConfig { attn_scales: vec![0.5], ..ModelConfig::named("tiny").unwrap().vae };
    let error = Vae::load(&config, &SyntheticSource::new(1), device(), Kind::Float).unwrap_err().to_string();
    assert_eq!(error, "weights: unsupported config: vae attn_scales [0.5]; allowed: none");
}
