//! `text`: a prompt becomes the rows that condition the generator.

use anyhow::Result;
use serde_json::json;
use tch::{Kind, Tensor};
use wan::text::{TextEncoder, TokenizerSource};
use wan::weights::Component;

use crate::options::{self, ModelOptions, PrecisionOption, WeightsOption};
use crate::statistics::Summary;
use crate::{line, machine};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    weights: WeightsOption,
    #[command(flatten)]
    precision: PrecisionOption,
    /// Synthetic weights have a token for each of its bytes, and no more than the model's text length.
    #[arg(long, default_value = "a red fox runs through fresh snow at the edge of a forest, morning light")]
    prompt: String,
    /// Encodings measured.
    #[arg(long, default_value = "20", value_parser = clap::value_parser!(u32).range(1..))]
    calls: u32,
    /// Encodings before the measurement, not counted.
    #[arg(long, default_value_t = 3)]
    warm_up: u32,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let config = options.model.config()?;
    let device = options::resolve(options.model.device)?;
    let kind = options.precision.on(device);
    let source = options.weights.open(Component::Text, device)?;
    let tokenizer = TokenizerSource::beside(options.weights.get());
    let (load, encoder) =
        machine::ms(device, || Ok(TextEncoder::load(&config.text, &*source, tokenizer, device, kind)?))?;
    let (mut times, mut tokens) = (Vec::new(), 0);
    for number in 0..options.warm_up + options.calls {
        let (ms, rows) = machine::ms(device, || Ok(encoder.encode(&options.prompt)?))?;
        if number >= options.warm_up {
            times.push(ms);
        }
        tokens = tokens_of(&rows);
    }
    let line = line::join([
        json!({"bench": "text"}),
        machine::conditions(device)?,
        json!({"model": config.name}),
        options.weights.conditions(kind),
        json!({
            "prompt": options.prompt, "tokens": tokens, "calls": options.calls,
            "warm_up_calls_excluded": options.warm_up, "load_s": load / 1e3, "encode_ms": Summary::of(times).json(),
        }),
        machine::memory(device)?,
    ]);
    println!("{line}");
    Ok(())
}

/// Rows `[1, L, D]` past the prompt are zero.
fn tokens_of(rows: &Tensor) -> i64 {
    rows.abs()
        .sum_dim_intlist([-1].as_slice(), false, Kind::Float)
        .count_nonzero_dim_intlist(1)
        .int64_value(&[0])
}
