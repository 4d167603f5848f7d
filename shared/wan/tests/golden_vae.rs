//! The VAE against the reference data: one-shot and streaming, both directions.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use std::collections::BTreeSet;

use support::vae::{config, vae};
use support::{Golden, device};
use tch::{Kind, Tensor};
use wan::vae::{DecoderStream, EncoderStream, VaeError};

fn io() -> Golden {
    Golden::open("wan_vae_io")
}

/// Clips at once, with and without the reference's cache between its own groups, and single frames.
#[test]
fn golden_clips_are_encoded_at_once() {
    let (vae, config, io) = (vae(), config(), io());
    let constant = |values: &[f64]| Tensor::from_slice(values).to_kind(Kind::Float).to_device(device());
    let (mean, std) = (constant(&config.latent_mean), constant(&config.latent_std));
    io.check_within("latent_mean", &mean, 1e-6);
    io.check_within("latent_std", &std, 1e-6);
    // The other clips are the first frames of the longest.
    let longest = io.numbered("encode.clip", "").into_iter().max().expect("a clip encode.clip<frames>");
    let pixels = io.get(&format!("encode.clip{longest}"));
    let results = [".latent", ".latent_use_cache_false", ".mu"];
    let clips: BTreeSet<usize> =
        results.into_iter().flat_map(|result| io.numbered("encode.clip", result)).collect();
    for frames in clips {
        let key = |name: &str| format!("encode.clip{frames}.{name}");
        let clip = pixels.narrow(2, 0, frames as i64);
        let latent = vae.encode_clip(&clip);
        io.check(&key("latent"), &latent);
        io.check(&key("latent_use_cache_false"), &latent);
        let shape = [1, 1, -1, 1, 1];
        let mu = &latent * std.reshape(shape) + mean.reshape(shape);
        io.check(&key("mu"), &mu.transpose(1, 2));
        if frames == 1 {
            assert!(vae.encode_frame(&clip).equal(&latent), "one frame is a clip of its own");
        }
    }
    if let Some(frame) = io.find("reencode.frame") {
        // Decoded pixels are [B, T, 3, H, W], encoder pixels [B, 3, T, H, W].
        io.check("reencode.latent", &vae.encode_frame(&frame.transpose(1, 2)));
    }
    io.assert_compared();
}

#[test]
fn golden_clip_is_decoded_at_once() {
    let (vae, io) = (vae(), io());
    let latent = io.get("decode.latent");
    io.check("decode.pixels", &vae.decode_clip(&latent));
    let raw = vae.decode_unclamped(&mut DecoderStream::new(), &latent);
    io.check("decode.pixels_unclamped", &raw);
    io.assert_compared();
}

#[test]
fn golden_stream_is_decoded_call_by_call() {
    let (vae, io) = (vae(), io());
    let mut stream = DecoderStream::new();
    for call in io.numbered("stream_decode.call", ".latent") {
        let pixels = vae.decode(&mut stream, &io.get(&format!("stream_decode.call{call}.latent")));
        io.check(&format!("stream_decode.call{call}.pixels"), &pixels);
    }
    io.assert_compared();
}

#[test]
fn golden_stream_is_encoded_call_by_call() {
    let (vae, io) = (vae(), io());
    let pixels = |call: usize| io.get(&format!("stream_encode.call{call}.pixels"));
    let mut stream = EncoderStream::new();
    for call in io.numbered("stream_encode.call", ".pixels") {
        let latent = vae.encode(&mut stream, &pixels(call)).unwrap();
        io.check(&format!("stream_encode.call{call}.latent"), &latent);
    }
    // A later call's frames as the very first call: the last ones complete no group and only enter the caches.
    for frames in io.between("stream_encode.first_call_of_", ".latent") {
        let latent = vae.encode(&mut EncoderStream::new(), &pixels(1)).unwrap();
        io.check(&format!("stream_encode.first_call_of_{frames}.latent"), &latent);
    }
    io.assert_compared();
}

/// Latents of one call of a stream.
fn latents(call: u64) -> Tensor {
    support::noise(call, &[1, 3, config().z_dim, 3, 4])
}

/// Pixels of one call of a stream.
fn pixels(call: u64, frames: i64) -> Tensor {
    support::noise(call, &[1, 3, frames, 3 * config().spatial_factor(), 4 * config().spatial_factor()])
}

#[test]
fn a_stream_decoded_latent_by_latent_has_the_same_bytes_as_by_chunks() {
    let (vae, later) = (vae(), config().temporal_factor());
    let (mut chunks, mut singles) = (DecoderStream::new(), DecoderStream::new());
    assert!(chunks.is_new());
    for call in 0..3 {
        let latents = latents(call);
        let whole = vae.decode(&mut chunks, &latents);
        let parts: Vec<Tensor> = latents.split(1, 1).iter().map(|z| vae.decode(&mut singles, z)).collect();
        let first = if call == 0 { 1 } else { later };
        assert_eq!(parts[0].size()[1], first, "frames of the first latent of call {call}");
        assert!(Tensor::cat(&parts, 1).equal(&whole), "call {call}");
    }
    assert!(!chunks.is_new());
}

#[test]
fn a_cleared_stream_starts_over() {
    let (vae, latents) = (vae(), latents(0));
    let mut stream = DecoderStream::new();
    let first = vae.decode(&mut stream, &latents);
    stream.clear();
    assert!(stream.is_new());
    assert!(vae.decode(&mut stream, &latents).equal(&first));
}

/// The reference would start the second encode over, its mark of a new stream being the decoder's too.
#[test]
fn encoder_and_decoder_streams_do_not_touch_each_other() {
    let vae = vae();
    let calls = [pixels(0, 9), pixels(1, 12)];
    let mut alone = EncoderStream::new();
    let _ = vae.encode(&mut alone, &calls[0]).unwrap();
    let expected = vae.encode(&mut alone, &calls[1]).unwrap();
    let (mut encoder, mut decoder) = (EncoderStream::new(), DecoderStream::new());
    let _ = vae.encode(&mut encoder, &calls[0]).unwrap();
    let _ = vae.decode(&mut decoder, &latents(0));
    assert!(vae.encode(&mut encoder, &calls[1]).unwrap().equal(&expected));
}

#[test]
fn frames_that_do_not_make_groups_are_refused() {
    let vae = vae();
    let frames = |n| pixels(0, n);
    let mut stream = EncoderStream::new();
    assert_eq!(vae.encode(&mut stream, &frames(3)).unwrap_err(), VaeError::FirstFrames { got: 3 });
    assert!(stream.is_new());
    let _ = vae.encode(&mut stream, &frames(5)).unwrap();
    assert_eq!(vae.encode(&mut stream, &frames(6)).unwrap_err(), VaeError::LaterFrames { got: 6 });
}
