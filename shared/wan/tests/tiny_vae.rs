//! What the model that is made from a seed shows: not a picture of anything, but one that moves and fits the screen.
#![allow(clippy::unwrap_used, reason = "test code")]

use tch::{Device, Kind, Tensor};
use wan::config::ModelConfig;
use wan::vae::{DecoderStream, Vae};
use wan::weights::SyntheticSource;

#[test]
fn tiny_vae_decodes_noise_to_a_picture_that_is_neither_constant_nor_saturated() {
    let config = ModelConfig::named("tiny").unwrap().vae;
    let options = (Kind::Float, Device::Cpu);
    for seed in 1..=4 {
        let vae = Vae::load(&config, &SyntheticSource::new(seed), Device::Cpu, Kind::Float).unwrap();
        tch::manual_seed(5);
        let latents = Tensor::randn([1, 3, config.z_dim, 8, 8], options);
        let pixels = vae.decode_unclamped(&mut DecoderStream::new(), &latents);
        assert_eq!(pixels.size(), [1, 9, 3, 64, 64]);
        let (deviation, saturated) =
            (pixels.std(true), pixels.abs().gt(1.0).to_kind(Kind::Float).mean(Kind::Float));
        let (deviation, saturated) = (deviation.double_value(&[]), saturated.double_value(&[]));
        assert!((0.2..0.8).contains(&deviation), "seed {seed}: deviation {deviation}");
        assert!(saturated < 0.25, "seed {seed}: saturated {saturated}");
        let within = pixels.select(1, 4).std(true).double_value(&[]);
        assert!(within > 0.2, "seed {seed}: deviation within a frame {within}");
        let between =
            (pixels.narrow(1, 1, 8) - pixels.narrow(1, 0, 8)).abs().mean(Kind::Float).double_value(&[]);
        assert!(between > 0.05, "seed {seed}: change from frame to frame {between}");
        let again = vae.encode_frame(&pixels.narrow(1, 4, 1).transpose(1, 2).clamp(-1.0, 1.0));
        assert_eq!(again.size(), [1, 1, config.z_dim, 8, 8]);
        assert!(again.isfinite().all().int64_value(&[]) == 1 && again.std(true).double_value(&[]) > 0.1);
    }
}
