//! The UMT5 encoder against the reference data.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use support::{Golden, TOLERANCE, device};
use tch::{Kind, Tensor};
use wan::config::{ModelConfig, Umt5Config};
use wan::text::{TextEncoder, TextError, TokenizerSource, Umt5, relative_position_bucket};
use wan::weights::{SafetensorsSource, SyntheticSource};

fn config() -> Umt5Config {
    support::json("umt5_config.json")
}

fn model() -> Umt5 {
    let weights = SafetensorsSource::open(support::path("umt5_weights.safetensors")).unwrap();
    Umt5::load(&config(), &weights, device(), Kind::Float).unwrap()
}

/// Ids, and which of them count: all but the padding that fills the rows of a batch.
fn ids_and_mask(io: &Golden) -> (Tensor, Tensor) {
    let ids = io.get("ids");
    let mask = io.find("mask").unwrap_or_else(|| ids.ne(0).to_kind(Kind::Int64));
    (ids, mask)
}

#[test]
fn golden_encoder_output_and_what_leads_to_it() {
    let (model, io) = (model(), Golden::open("umt5_io"));
    check_positions(&model, &io);
    let (ids, mask) = ids_and_mask(&io);
    io.check("output", &model.forward(&ids, &mask));
    for (block, state) in model.hidden_states(&ids, &mask).iter().enumerate() {
        io.check(&format!("intermediate.block{block}_out"), state);
    }
    // Long enough for the logarithmic buckets.
    if let Some(ids) = io.find("ids_long") {
        let mask = io.find("mask_long").unwrap_or_else(|| ids.ones_like());
        io.check("output_long", &model.forward(&ids, &mask));
    }
    io.assert_compared();
}

fn check_positions(model: &Umt5, io: &Golden) {
    let config = config();
    if let Some(positions) = io.find("bucket.relative_position") {
        let positions = Vec::<i64>::try_from(positions).unwrap().into_iter();
        let bucket = |p| relative_position_bucket(p, config.num_buckets, config.max_dist);
        io.check_integers("bucket.index", &positions.map(bucket).collect::<Vec<_>>());
    }
    let length = io.get("ids").size()[1];
    io.check("bias_block0", &model.position_bias(0, length).unwrap());
}

/// Padding changes no row of a prompt, and the rows past it are zero for the transformer.
#[test]
fn golden_padded_prompts() {
    let (model, io) = (model(), Golden::open("umt5_io"));
    let (ids, mask) = ids_and_mask(&io);
    let lengths = Vec::<i64>::try_from(mask.sum_dim_intlist([1].as_slice(), false, Kind::Int64)).unwrap();
    io.check_integers("seq_lens", &lengths);
    let missing = config().text_len - ids.size()[1];
    let padded = |t: &Tensor| t.constant_pad_nd([0, missing]);
    let (ids_padded, mask_padded) = (padded(&ids), padded(&mask));
    io.check_within("ids_padded", &ids_padded, 0.0);
    io.check_within("mask_padded", &mask_padded, 0.0);

    let zeroed = model.forward(&ids_padded, &mask_padded) * mask_padded.unsqueeze(-1);
    io.check("output_zeroed_padded", &zeroed);
    // Computing the prompt's own rows alone, as the text encoder does, gives the same.
    for (row, length) in (0_i64..).zip(lengths) {
        let ids = ids.narrow(0, row, 1).narrow(1, 0, length);
        let rows = model.forward(&ids, &ids.ones_like());
        let part = |t: &Tensor| t.narrow(0, row, 1).narrow(1, 0, length);
        io.check_part("output_zeroed_padded", part, &rows, TOLERANCE);
        io.check_part("output", part, &rows, TOLERANCE);
    }
    io.assert_compared();
}

/// A small encoder that depends on no set.
fn small() -> Umt5Config {
    ModelConfig::named("tiny").unwrap().text
}

fn encoder_of(config: &Umt5Config) -> TextEncoder {
    let weights = SyntheticSource::new(1);
    TextEncoder::load(config, &weights, TokenizerSource::Bytes, device(), Kind::Float).unwrap()
}

fn encoder() -> TextEncoder {
    encoder_of(&small())
}

#[test]
fn a_prompt_fills_its_rows_and_the_others_are_zero() {
    let rows = encoder().encode("a red fox").unwrap();
    let config = small();
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
    assert_eq!(rows.size()[1], small().text_len);
    assert!(rows.equal(&encoder.encode(&longer).unwrap()));
}

#[test]
fn ids_beyond_the_vocabulary_are_refused() {
    let encoder = encoder_of(&Umt5Config { vocab: 64, ..small() });
    let error = encoder.encode("z").unwrap_err();
    assert!(matches!(error, TextError::Vocabulary { id: 125, vocab: 64 }), "{error}");
}
