//! `vae`: decoding one chunk of a stream, and the part of it that the next chunk waits for.

use anyhow::Result;
use serde_json::json;
use tch::{Device, Tensor};
use wan::noise::block_noise;
use wan::vae::{DecoderStream, Vae};
use wan::weights::Component;

use crate::options::{self, ModelOptions, PrecisionOption, SizeOptions, Subject, WeightsOption};
use crate::statistics::Summary;
use crate::{line, machine};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    size: SizeOptions,
    #[command(flatten)]
    weights: WeightsOption,
    #[command(flatten)]
    precision: PrecisionOption,
    /// Chunks measured.
    #[arg(long, default_value = "20", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: u32,
    /// Chunks before the measurement, not counted; the first of a stream has fewer frames.
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    warm_up: u32,
}

/// Milliseconds of one chunk's parts.
struct Times {
    first_latent: f64,
    encode: f64,
    rest: f64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let subject = options.model.at(options.size)?;
    let device = options::resolve(options.model.device)?;
    let kind = options.precision.on(device);
    let source = options.weights.open(Component::Vae, device)?;
    let (load, vae) = machine::ms(device, || Ok(Vae::load(&subject.config.vae, &*source, device, kind)?))?;
    let (mut stream, mut times, mut frames) = (DecoderStream::new(), Vec::new(), 0);
    for number in 0..options.warm_up + options.chunks {
        let (chunk, decoded) = decode(&vae, &mut stream, &subject, device, number)?;
        if number >= options.warm_up {
            times.push(chunk);
        }
        frames = decoded;
    }
    let common = line::join([
        machine::conditions(device)?,
        subject.conditions(),
        options.weights.conditions(kind),
        json!({
            "chunks": options.chunks, "warm_up_chunks_excluded": options.warm_up,
            "load_s": load / 1e3, "elementwise": vae.elementwise_name(), "missing": vae.missing(),
        }),
        machine::memory(device)?,
    ]);
    let summary = |time: fn(&Times) -> f64| Summary::of(times.iter().map(time)).json();
    let chunk = json!({
        "bench": "vae", "part": "chunk", "frames": frames, "chunk_ms": summary(|t| t.first_latent + t.rest),
        "phases_ms": {"first latent": summary(|t| t.first_latent), "rest": summary(|t| t.rest)},
    });
    let head = json!({
        "bench": "vae", "part": "head", "head_ms": summary(|t| t.first_latent + t.encode),
        "phases_ms": {"first latent": summary(|t| t.first_latent), "encode one frame": summary(|t| t.encode)},
    });
    println!("{}", line::join([common.clone(), chunk]));
    println!("{}", line::join([common, head]));
    Ok(())
}

/// Decodes the next chunk as stage 0 does: the first latent, whose first frame is encoded again, and then the others. Its
/// times and its number of frames.
fn decode(
    vae: &Vae,
    stream: &mut DecoderStream,
    subject: &Subject,
    device: Device,
    number: u32,
) -> Result<(Times, i64)> {
    let latents = latents(subject, number)?.f_to_device(device)?;
    let (first, others) = (latents.narrow(1, 0, 1), latents.narrow(1, 1, latents.size()[1] - 1));
    let (first_latent, head) = machine::ms(device, || Ok(vae.decode(stream, &first)))?;
    // [1, 1, 3, H, W] -> [1, 3, 1, H, W]
    let frame = head.narrow(1, 0, 1).transpose(1, 2);
    let (encode, _) = machine::ms(device, || Ok(vae.encode_frame(&frame)))?;
    let (rest, tail) = machine::ms(device, || Ok(vae.decode(stream, &others)))?;
    Ok((Times { first_latent, encode, rest }, head.size()[1] + tail.size()[1]))
}

fn latents(subject: &Subject, number: u32) -> Result<Tensor> {
    let [_, frames, channels, rows, columns] = subject.latents();
    Ok(block_noise(42, i64::from(number) * frames, frames, channels, rows, columns)?)
}
