//! The kernels of the VAE, and the whole of it in bf16 with them.

use tch::{Device, Kind, Tensor};
use wan::config::ModelConfig;
use wan::vae::fused::{Fused, NormSilu};
use wan::vae::{DecoderStream, EncoderStream, Vae};
use wan::weights::SyntheticSource;

use super::{check, is_nan, poisoned, random, seed, wide};
use crate::{gpu, relative_error};

/// Frames, rows and columns, and channels of each level of the full VAE, of a small one, and the widest that there can be.
const SIZES: [([i64; 3], i64); 7] = [
    ([4, 33, 47], 96),
    ([4, 31, 17], 192),
    ([1, 60, 104], 384),
    ([3, 5, 7], 8),
    ([3, 5, 7], 24),
    ([1, 1, 2], 64),
    ([2, 9, 11], 768),
];

fn norm_silu(x: &Tensor, scale: &Tensor) -> Tensor {
    let norm = x.norm_scalaropt_dim(2.0, [-1].as_slice(), true).clamp_min(1e-12);
    (x / norm * scale).silu()
}

#[test]
fn norm_and_silu_behind_the_context_of_the_next_convolution() {
    seed(11);
    let fused = Fused::on(gpu()).unwrap();
    for ([frames, height, width], channels) in SIZES {
        let (input, scale) =
            (random(&[frames, height, width, channels], 3.0, 0.2), random(&[channels], 2.0, 5.0));
        // A pixel of zeros stays one.
        let _ = input.narrow(0, 0, 1).narrow(1, 0, 1).narrow(2, 0, 1).zero_();
        let offset = random(&[channels], 1.0, 0.0);
        for bias in [None, Some(&offset)] {
            let buffer = poisoned(&[2 + frames + 1, height, width, channels]);
            let output = buffer.narrow(0, 2, frames);
            fused.norm_silu(NormSilu { input: &input, bias, scale: &scale, output: &output }).unwrap();

            let biased =
                |x: Tensor, kind| bias.map_or_else(|| x.shallow_clone(), |bias| &x + bias.to_kind(kind));
            let expected = norm_silu(&biased(wide(&input), Kind::Float), &wide(&scale));
            let unfused = norm_silu(&biased(input.shallow_clone(), Kind::BFloat16), &scale);
            let what = format!("{frames}x{height}x{width}, {channels} channels, bias {}", bias.is_some());
            check(&what, &output, &unfused, &expected);
            assert!(
                is_nan(&buffer.narrow(0, 0, 2)) && is_nan(&buffer.narrow(0, 2 + frames, 1)),
                "beside, {what}"
            );
            if bias.is_none() {
                assert!(output.get(0).get(0).get(0).eq(0.0).all().int64_value(&[]) == 1, "zeros, {what}");
            }
        }
    }
}

#[test]
fn residual_addition_with_a_bias() {
    seed(12);
    let fused = Fused::on(gpu()).unwrap();
    for ([frames, height, width], channels) in SIZES {
        let shape = [frames, height, width, channels];
        let buffer = poisoned(&[frames + 2, height, width, channels]);
        let (before, added, bias) =
            (random(&shape, 2.0, 0.1), random(&shape, 2.0, 0.0), random(&[channels], 0.5, 0.0));
        let mut sum = buffer.narrow(0, 1, frames);
        sum.copy_(&before);
        fused.add(&sum, &added, &bias).unwrap();
        let what = format!("sum of {shape:?}");
        check(&what, &sum, &(&before + &bias + &added), &(wide(&before) + wide(&bias) + wide(&added)));
        assert!(
            is_nan(&buffer.narrow(0, 0, 1)) && is_nan(&buffer.narrow(0, frames + 1, 1)),
            "beside, {what}"
        );
    }
}

#[test]
fn pixels_that_do_not_fit_are_refused() {
    let fused = Fused::on(gpu()).unwrap();
    let (x, scale) = (random(&[2, 3, 5, 96], 1.0, 0.0), random(&[96], 1.0, 0.0));
    let refused = |input: &Tensor, scale: &Tensor, output: &Tensor| {
        fused.norm_silu(NormSilu { input, bias: None, scale, output }).unwrap_err().to_string()
    };
    let error = refused(&random(&[2, 3, 5, 100], 1.0, 0.0), &scale, &x);
    assert!(error.contains("C a multiple of 8 up to 768"), "{error}");
    let error = refused(&x.transpose(0, 1), &scale, &x);
    assert!(error.contains("contiguous"), "{error}");
    let error = refused(&x, &random(&[95], 1.0, 0.0), &x.empty_like());
    assert!(error.contains("scale: expected [96]"), "{error}");
    let error = refused(&x, &scale, &wide(&x));
    assert!(error.contains("output: expected BFloat16"), "{error}");
    let error = fused.add(&x, &x.to_device(Device::Cpu), &scale).unwrap_err().to_string();
    assert!(error.contains("Cpu"), "{error}");
}

/// The full VAE on small pictures: with the kernels near to float32, and the same bytes however its latents are cut.
#[test]
fn the_whole_vae_in_bf16_stays_near_float32() {
    seed(13);
    for (name, bound) in [("wan-1.3b", 5e-2), ("tiny", 5e-2)] {
        let config = ModelConfig::named(name).unwrap().vae;
        let load = |kind| Vae::load(&config, &SyntheticSource::new(1).on(gpu()), gpu(), kind).unwrap();
        let (narrow, exact) = (load(Kind::BFloat16), load(Kind::Float));
        assert_eq!((narrow.elementwise_name(), narrow.missing()), ("fused", None), "{name}");
        assert_eq!(exact.elementwise_name(), "torch-eager", "{name}");
        let latents = Tensor::randn([1, 4, config.z_dim, 9, 13], (Kind::Float, gpu()));
        let decoded = |vae: &Vae| vae.decode(&mut DecoderStream::new(), &latents);
        let (found, expected) = (decoded(&narrow), decoded(&exact));
        let error = relative_error(&found, &expected);
        println!("{name}, vae in bf16, decoding: {error:.2e} from float32");
        assert!(error < bound, "{name}: {error:e}");
        let mut stream = DecoderStream::new();
        let parts: Vec<Tensor> = latents.split(1, 1).iter().map(|z| narrow.decode(&mut stream, z)).collect();
        assert!(Tensor::cat(&parts, 1).equal(&found), "{name}: latents one by one");

        let pixels = expected.transpose(1, 2);
        let encoded = |vae: &Vae| vae.encode(&mut EncoderStream::new(), &pixels).unwrap();
        let error = relative_error(&encoded(&narrow), &encoded(&exact));
        println!("{name}, vae in bf16, encoding: {error:.2e} from float32");
        assert!(error < bound, "{name}: {error:e}");
        let frame = pixels.narrow(2, 0, 1);
        let error = relative_error(&narrow.encode_frame(&frame), &exact.encode_frame(&frame));
        assert!(error < bound, "{name}, one frame: {error:e}");
    }
}
