//! The UMT5 encoder against the reference data.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use support::{Golden, TOLERANCE, assert_close, key_map};
use tch::{Kind, Tensor};
use wan::config::Umt5Config;
use wan::text::{TextEncoder, TextError, TokenizerSource, Umt5, relative_position_bucket};
use wan::weights::SafetensorsSource;

fn config() -> Umt5Config {
    support::json("umt5_config.json")
}

fn weights() -> SafetensorsSource {
    SafetensorsSource::open(support::path("umt5_weights.safetensors")).unwrap()
}

fn model() -> Umt5 {
    Umt5::load(&config(), &weights(), support::device(), Kind::Float).unwrap()
}

fn io() -> Golden {
    Golden::open("umt5_io")
}

#[test]
fn golden_relative_positions_fall_into_the_reference_buckets() {
    let (config, io) = (config(), io());
    let positions = Vec::<i64>::try_from(io.get("bucket.relative_position")).unwrap();
    let expected = Vec::<i64>::try_from(io.get("bucket.index")).unwrap();
    for (position, expected) in positions.into_iter().zip(expected) {
        let bucket = relative_position_bucket(position, config.num_buckets, config.max_dist);
        assert_eq!(bucket, expected, "position {position}");
    }
}

#[test]
fn golden_position_bias_of_the_first_block() {
    let expected = io().get("bias_block0");
    let bias = model().position_bias(0, expected.size()[3]).unwrap();
    assert_close("bias", &bias, &expected, TOLERANCE);
}

#[test]
fn golden_encoder_output_and_what_each_block_gives() {
    let (model, io) = (model(), io());
    let (ids, mask) = (io.get("ids"), io.get("mask"));
    assert_close("output", &model.forward(&ids, &mask), &io.get("output"), TOLERANCE);
    for (block, state) in model.hidden_states(&ids, &mask).iter().enumerate() {
        let name = format!("intermediate.block{block}_out");
        if io.has(&name) {
            assert_close(&name, state, &io.get(&name), TOLERANCE);
        }
    }
}

#[test]
fn golden_padding_changes_no_row_of_the_prompt() {
    let (model, io) = (model(), io());
    let expected = io.get("output_zeroed_padded");
    let padded = model.forward(&io.get("ids_padded"), &io.get("mask_padded"));
    let mask = io.get("mask_padded").unsqueeze(-1);
    assert_close("zeroed", &(padded * mask), &expected, TOLERANCE);
    // Computing the prompt's own rows alone, as the text encoder does, gives the same.
    let lengths = Vec::<i64>::try_from(io.get("seq_lens")).unwrap();
    for (row, length) in (0_i64..).zip(lengths) {
        let ids = io.get("ids").narrow(0, row, 1).narrow(1, 0, length);
        let rows = model.forward(&ids, &ids.ones_like());
        let rows = rows.constant_pad_nd([0, 0, 0, expected.size()[1] - length]);
        assert_close(&format!("prompt {row}"), &rows, &expected.narrow(0, row, 1), TOLERANCE);
    }
}

#[test]
fn golden_long_prompt_reaches_the_logarithmic_buckets() {
    let (model, io) = (model(), io());
    let output = model.forward(&io.get("ids_long"), &io.get("mask_long"));
    assert_close("output", &output, &io.get("output_long"), TOLERANCE);
}

#[test]
fn golden_weights_under_hugging_face_names_are_the_same_values() {
    let (ours, theirs) = (Golden::open("umt5_weights"), Golden::open("umt5_weights_hf"));
    let map = key_map("umt5_key_map_to_hf.json");
    assert_eq!(map.len(), ours.names().len());
    for (name, other) in map {
        assert!(ours.get(&name).equal(&theirs.get(&other)), "{name} is not {other}");
    }
}

fn encoder() -> TextEncoder {
    TextEncoder::load(&config(), &weights(), TokenizerSource::Bytes, support::device(), Kind::Float).unwrap()
}

#[test]
fn a_prompt_fills_its_rows_and_the_others_are_zero() {
    let rows = encoder().encode("a red fox").unwrap();
    let config = config();
    assert_eq!(rows.size(), [1, config.text_len, config.dim]);
    let norms = Vec::<f64>::try_from(rows.norm_scalaropt_dim(2.0, [-1], false).squeeze()).unwrap();
    // Nine bytes and the end mark.
    assert!(norms[..10].iter().all(|n| *n > 0.1), "{norms:?}");
    assert!(norms[10..].iter().all(|n| *n == 0.0), "{norms:?}");
}

#[test]
fn prompts_differ_and_repeat_exactly() {
    let encoder = encoder();
    let encode = |prompt| encoder.encode(prompt).unwrap();
    assert!(encode("a red fox").equal(&encode("a red fox")));
    assert!(!encode("a red fox").equal(&encode("a red box")));
}

#[test]
fn a_prompt_longer_than_the_text_is_truncated() {
    let encoder = encoder();
    let long = "x".repeat(1000);
    let longer = "x".repeat(2000);
    let rows: Tensor = encoder.encode(&long).unwrap();
    assert_eq!(rows.size()[1], config().text_len);
    assert!(rows.equal(&encoder.encode(&longer).unwrap()));
}

#[test]
fn ids_beyond_the_vocabulary_are_refused() {
    let small = Umt5Config { vocab: 64, ..config() };
    let weights = wan::weights::SyntheticSource::new(1);
    let encoder =
        TextEncoder::load(&small, &weights, TokenizerSource::Bytes, support::device(), Kind::Float).unwrap();
    let error = encoder.encode("z").unwrap_err();
    assert!(matches!(error, TextError::Vocabulary { id: 125, vocab: 64 }), "{error}");
}
