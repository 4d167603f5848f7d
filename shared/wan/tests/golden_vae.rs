//! The VAE against the reference data: one-shot and streaming, both directions.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use support::{Golden, TOLERANCE, assert_close, key_map};
use tch::{Kind, Tensor};
use wan::config::VaeConfig;
use wan::vae::{DecoderStream, EncoderStream, Vae, VaeError};
use wan::weights::SafetensorsSource;

fn config() -> VaeConfig {
    support::json("wan_vae_config.json")
}

fn vae() -> Vae {
    let weights = SafetensorsSource::open(support::path("wan_vae_weights.safetensors")).unwrap();
    Vae::load(&config(), &weights, support::device(), Kind::Float).unwrap()
}

fn io() -> Golden {
    Golden::open("wan_vae_io")
}

#[test]
fn golden_constants_are_those_of_the_config() {
    let (config, io) = (config(), io());
    assert_close("latent_mean", &Tensor::from_slice(&config.latent_mean), &io.get("latent_mean"), 1e-6);
    assert_close("latent_std", &Tensor::from_slice(&config.latent_std), &io.get("latent_std"), 1e-6);
}

#[test]
fn golden_clip_is_encoded_at_once() {
    let (vae, io) = (vae(), io());
    let clip = io.get("encode.clip9");
    let latent = vae.encode_clip(&clip);
    assert_close("clip9.latent", &latent, &io.get("encode.clip9.latent"), TOLERANCE);
    let shape = [1, 1, -1, 1, 1];
    let mu = &latent * io.get("latent_std").reshape(shape) + io.get("latent_mean").reshape(shape);
    assert_close("clip9.mu", &mu.transpose(1, 2), &io.get("encode.clip9.mu"), TOLERANCE);
    let first = vae.encode_frame(&clip.narrow(2, 0, 1));
    assert_close("clip1.latent", &first, &io.get("encode.clip1.latent"), TOLERANCE);
}

/// Without a cache between calls the reference encodes a clip to the same numbers.
#[test]
fn golden_encode_with_use_cache_false_is_the_one_shot_encode() {
    let (vae, io) = (vae(), io());
    let clip = io.get("encode.clip9");
    let latent = vae.encode_clip(&clip);
    assert_close("clip9", &latent, &io.get("encode.clip9.latent_use_cache_false"), TOLERANCE);
    let first = vae.encode_clip(&clip.narrow(2, 0, 1));
    assert_close("clip1", &first, &io.get("encode.clip1.latent_use_cache_false"), TOLERANCE);
}

#[test]
fn golden_clip_is_decoded_at_once() {
    let (vae, io) = (vae(), io());
    let latent = io.get("decode.latent");
    assert_close("pixels", &vae.decode_clip(&latent), &io.get("decode.pixels"), TOLERANCE);
    let raw = vae.decode_unclamped(&mut DecoderStream::new(), &latent);
    assert_close("unclamped", &raw, &io.get("decode.pixels_unclamped"), TOLERANCE);
}

#[test]
fn golden_stream_is_decoded_call_by_call() {
    let (vae, io) = (vae(), io());
    let mut stream = DecoderStream::new();
    for call in io.numbered("stream_decode.call", ".latent") {
        let pixels = vae.decode(&mut stream, &io.get(&format!("stream_decode.call{call}.latent")));
        assert_close(
            &format!("call {call}"),
            &pixels,
            &io.get(&format!("stream_decode.call{call}.pixels")),
            TOLERANCE,
        );
    }
}

#[test]
fn golden_stream_decoded_latent_by_latent_has_the_same_bytes_as_by_chunks() {
    let (vae, io) = (vae(), io());
    let (mut chunks, mut singles) = (DecoderStream::new(), DecoderStream::new());
    assert!(chunks.is_new());
    for call in io.numbered("stream_decode.call", ".latent") {
        let latents = io.get(&format!("stream_decode.call{call}.latent"));
        let whole = vae.decode(&mut chunks, &latents);
        let parts: Vec<Tensor> = latents.split(1, 1).iter().map(|z| vae.decode(&mut singles, z)).collect();
        let first = if call == 0 { 1 } else { 4 };
        assert_eq!(parts[0].size()[1], first, "frames of the first latent of call {call}");
        assert!(Tensor::cat(&parts, 1).equal(&whole), "call {call}");
    }
    assert!(!chunks.is_new());
}

#[test]
fn golden_stream_is_encoded_call_by_call() {
    let (vae, io) = (vae(), io());
    let mut stream = EncoderStream::new();
    for call in io.numbered("stream_encode.call", ".pixels") {
        let latent = vae.encode(&mut stream, &io.get(&format!("stream_encode.call{call}.pixels"))).unwrap();
        assert_close(
            &format!("call {call}"),
            &latent,
            &io.get(&format!("stream_encode.call{call}.latent")),
            TOLERANCE,
        );
    }
}

#[test]
fn golden_first_call_of_twelve_frames_leaves_the_last_three_in_the_caches() {
    let (vae, io) = (vae(), io());
    let latent = vae.encode(&mut EncoderStream::new(), &io.get("stream_encode.call1.pixels")).unwrap();
    assert_close("latent", &latent, &io.get("stream_encode.first_call_of_12.latent"), TOLERANCE);
}

#[test]
fn golden_decoded_frame_is_encoded_again_as_a_clip_of_its_own() {
    let (vae, io) = (vae(), io());
    // Decoded pixels are [B, T, 3, H, W], encoder pixels [B, 3, T, H, W].
    let latent = vae.encode_frame(&io.get("reencode.frame").transpose(1, 2));
    assert_close("latent", &latent, &io.get("reencode.latent"), TOLERANCE);
}

#[test]
fn a_cleared_stream_starts_over() {
    let (vae, io) = (vae(), io());
    let latents = io.get("stream_decode.call0.latent");
    let mut stream = DecoderStream::new();
    let first = vae.decode(&mut stream, &latents);
    stream.clear();
    assert!(stream.is_new());
    assert!(vae.decode(&mut stream, &latents).equal(&first));
}

/// The reference would start the second encode over, its mark of a new stream being the decoder's too.
#[test]
fn encoder_and_decoder_streams_do_not_touch_each_other() {
    let (vae, io) = (vae(), io());
    let pixels = |call| io.get(&format!("stream_encode.call{call}.pixels"));
    let mut alone = EncoderStream::new();
    let _ = vae.encode(&mut alone, &pixels(0)).unwrap();
    let expected = vae.encode(&mut alone, &pixels(1)).unwrap();
    let (mut encoder, mut decoder) = (EncoderStream::new(), DecoderStream::new());
    let _ = vae.encode(&mut encoder, &pixels(0)).unwrap();
    let _ = vae.decode(&mut decoder, &io.get("stream_decode.call0.latent"));
    assert!(vae.encode(&mut encoder, &pixels(1)).unwrap().equal(&expected));
}

#[test]
fn frames_that_do_not_make_groups_are_refused() {
    let (vae, io) = (vae(), io());
    let frames = |n| io.get("encode.clip9").narrow(2, 0, n);
    let mut stream = EncoderStream::new();
    assert_eq!(vae.encode(&mut stream, &frames(3)).unwrap_err(), VaeError::FirstFrames { got: 3 });
    assert!(stream.is_new());
    let _ = vae.encode(&mut stream, &frames(5)).unwrap();
    assert_eq!(vae.encode(&mut stream, &frames(6)).unwrap_err(), VaeError::LaterFrames { got: 6 });
}

#[test]
fn golden_weights_under_diffusers_names_are_the_same_values() {
    let (ours, theirs) = (Golden::open("wan_vae_weights"), Golden::open("wan_vae_weights_diffusers"));
    let map = key_map("wan_vae_key_map_to_diffusers.json");
    assert_eq!(map.len(), ours.names().len());
    for (name, other) in map {
        assert!(ours.get(&name).equal(&theirs.get(&other)), "{name} is not {other}");
    }
}
