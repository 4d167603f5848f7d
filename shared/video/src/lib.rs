//! Video coding: pictures in, access units out, and back. An encoder belongs to one stream, and so does a decoder.

mod h264;
mod h264_decoder;
mod i420;
mod jpeg;
mod vp8;
mod vp8_decoder;

pub use i420::{I420, MATRIX, OFFSET};
pub use jpeg::jpeg;

use contract::media::VideoCodec;
use contract::model::Size;

/// Frame rate that the encoders' rate control assumes: bits a frame = bitrate / this.
const NOMINAL_FPS: u32 = 24;

/// A codec that failed; the text is the library's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{codec}: {what}")]
pub struct CodecError {
    codec: &'static str,
    what: String,
}

impl CodecError {
    fn new(codec: &'static str, what: impl Into<String>) -> Self {
        Self { codec, what: what.into() }
    }
}

/// All bytes of one compressed picture: Annex B for H.264, one frame for VP8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessUnit {
    pub keyframe: bool,
    pub data: Vec<u8>,
}

/// Compresses one session's pictures, all of one size. Every picture gives an access unit: none is skipped to save bits.
pub trait VideoEncoder: Send {
    /// # Errors
    /// The library refuses the picture.
    fn encode(&mut self, picture: &I420, force_keyframe: bool) -> Result<AccessUnit, CodecError>;

    /// Holds from the next picture on, without a keyframe.
    ///
    /// # Errors
    /// The library refuses the bitrate.
    fn set_bitrate(&mut self, kbps: u32) -> Result<(), CodecError>;
}

/// # Errors
/// The library cannot be set up for this size.
pub fn encoder(codec: VideoCodec, size: Size, kbps: u32) -> Result<Box<dyn VideoEncoder>, CodecError> {
    Ok(match codec {
        VideoCodec::H264 => Box::new(h264::H264Encoder::new(kbps)?),
        VideoCodec::Vp8 => Box::new(vp8::Vp8Encoder::new(size, kbps)?),
    })
}

/// Brings access units back into pictures.
pub trait VideoDecoder: Send {
    /// # Errors
    /// The library refuses the access unit, or it has no picture in it.
    fn decode(&mut self, unit: &[u8]) -> Result<I420, CodecError>;
}

/// # Errors
/// The library cannot be set up.
pub fn decoder(codec: VideoCodec) -> Result<Box<dyn VideoDecoder>, CodecError> {
    Ok(match codec {
        VideoCodec::H264 => Box::new(h264_decoder::H264Decoder::new()?),
        VideoCodec::Vp8 => Box::new(vp8_decoder::Vp8Decoder::new()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { width: 160, height: 96 };

    /// A moving gradient with some texture.
    fn picture(n: usize) -> I420 {
        let (width, height) = (SIZE.width as usize, SIZE.height as usize);
        let mut data = Vec::new();
        for y in 0..height {
            data.extend((0..width).map(|x| (40 + (x + 3 * n) % 128 + (y * x) % 17 + y / 2) as u8));
        }
        for plane in 0..2 {
            for y in 0..height / 2 {
                data.extend((0..width / 2).map(|x| (100 + (x + y + n + 20 * plane) % 56) as u8));
            }
        }
        I420::new(SIZE, data)
    }

    fn psnr(a: &I420, b: &I420) -> f64 {
        let squares: f64 =
            a.data().iter().zip(b.data()).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        10.0 * (255.0 * 255.0 * a.data().len() as f64 / squares.max(1e-9)).log10()
    }

    const CODECS: [VideoCodec; 2] = [VideoCodec::H264, VideoCodec::Vp8];

    #[test]
    fn what_is_encoded_decodes_to_the_same_picture() {
        for codec in CODECS {
            let mut encoder = encoder(codec, SIZE, 2000).unwrap();
            let mut decoder = decoder(codec).unwrap();
            for n in 0..24 {
                let picture = picture(n);
                let decoded = decoder.decode(&encoder.encode(&picture, false).unwrap().data).unwrap();
                let psnr = psnr(&picture, &decoded);
                assert!(psnr > 30.0, "{codec:?} frame {n}: {psnr} dB");
            }
        }
    }

    #[test]
    fn the_first_picture_and_every_asked_one_is_a_keyframe_and_no_other() {
        for codec in CODECS {
            let mut encoder = encoder(codec, SIZE, 1000).unwrap();
            let keyframes: Vec<usize> =
                (0..40).filter(|n| encoder.encode(&picture(*n), *n == 17).unwrap().keyframe).collect();
            assert_eq!(keyframes, [0, 17], "{codec:?}");
        }
    }

    #[test]
    fn a_keyframe_decodes_without_anything_before_it() {
        for codec in CODECS {
            let mut encoder = encoder(codec, SIZE, 2000).unwrap();
            for n in 0..5 {
                encoder.encode(&picture(n), false).unwrap();
            }
            let unit = encoder.encode(&picture(5), true).unwrap();
            let decoded = decoder(codec).unwrap().decode(&unit.data).unwrap();
            assert!(psnr(&picture(5), &decoded) > 30.0, "{codec:?}");
        }
    }

    #[test]
    fn a_bitrate_takes_effect_both_ways_without_a_keyframe() {
        for codec in CODECS {
            let mut encoder = encoder(codec, SIZE, 800).unwrap();
            encoder.set_bitrate(600).unwrap();
            let mut bytes = |kbps: u32, from: usize| -> usize {
                encoder.set_bitrate(kbps).unwrap();
                (from..from + 72)
                    .map(|n| encoder.encode(&picture(n), false).unwrap())
                    .enumerate()
                    .filter(|(at, unit)| {
                        assert!(!unit.keyframe || from + at == 0, "{codec:?}");
                        *at >= 24
                    })
                    .map(|(_, unit)| unit.data.len())
                    .sum()
            };
            let (high, low, again) = (bytes(600, 0), bytes(150, 72), bytes(600, 144));
            assert!(low * 3 < high * 2 && low * 3 < again * 2, "{codec:?}: {high}, {low}, {again} bytes");
        }
    }

    #[test]
    fn what_is_no_access_unit_is_refused() {
        for codec in CODECS {
            assert!(decoder(codec).unwrap().decode(b"no video").is_err(), "{codec:?}");
        }
    }

    #[test]
    fn h264_is_constrained_baseline_in_annex_b() {
        let mut encoder = encoder(VideoCodec::H264, SIZE, 1000).unwrap();
        let unit = encoder.encode(&picture(0), false).unwrap();
        assert_eq!(&unit.data[..5], &[0, 0, 0, 1, 0x67], "the parameter sets come first");
        assert_eq!(unit.data[5], 66, "profile_idc");
        assert_eq!(unit.data[6] & 0x40, 0x40, "constraint_set1");
    }
}
