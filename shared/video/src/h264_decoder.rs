//! H.264 back into pictures, by openh264.

use contract::model::Size;
use openh264::decoder::Decoder;
use openh264::formats::YUVSource;

use super::{CodecError, I420, VideoDecoder};

pub(super) struct H264Decoder(Decoder);

impl H264Decoder {
    pub(super) fn new() -> Result<Self, CodecError> {
        Decoder::new().map(Self).map_err(|e| CodecError::new("h264", e.to_string()))
    }
}

impl VideoDecoder for H264Decoder {
    fn decode(&mut self, unit: &[u8]) -> Result<I420, CodecError> {
        let decoded = self.0.decode(unit).map_err(|e| CodecError::new("h264", e.to_string()))?;
        let picture = decoded.ok_or_else(|| CodecError::new("h264", "an access unit without a picture"))?;
        let (width, height) = picture.dimensions();
        let (ys, us, vs) = picture.strides();
        let size = Size {
            width: u32::try_from(width).unwrap_or(u32::MAX),
            height: u32::try_from(height).unwrap_or(u32::MAX),
        };
        let mut data = Vec::with_capacity(I420::bytes(size));
        let planes = [
            (picture.y(), ys, width, height),
            (picture.u(), us, width / 2, height / 2),
            (picture.v(), vs, width / 2, height / 2),
        ];
        for (plane, stride, width, height) in planes {
            plane.chunks(stride).take(height).for_each(|row| data.extend_from_slice(&row[..width]));
        }
        Ok(I420::new(size, data))
    }
}
