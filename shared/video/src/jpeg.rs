//! A single picture for `session/frame`.

use super::{CodecError, I420};

/// `quality` 1 to 100.
///
/// # Errors
/// The picture is larger than the format allows.
pub fn jpeg(picture: &I420, quality: u8) -> Result<Vec<u8>, CodecError> {
    let error = |e: &dyn std::fmt::Display| CodecError::new("jpeg", e.to_string());
    let width = u16::try_from(picture.width()).map_err(|e| error(&e))?;
    let height = u16::try_from(picture.height()).map_err(|e| error(&e))?;
    let mut bytes = Vec::new();
    jpeg_encoder::Encoder::new(&mut bytes, quality.clamp(1, 100))
        .encode(&full_range(picture), width, height, jpeg_encoder::ColorType::Ycbcr)
        .map_err(|e| error(&e))?;
    Ok(bytes)
}

/// Interleaved YCbCr at full resolution; JPEG's range is 0 to 255 where video's is 16 to 235 (240).
fn full_range(picture: &I420) -> Vec<u8> {
    let (y, u, v) = picture.planes();
    let half = picture.width() / 2;
    let luma = |value: u8| scale(i32::from(value) - 16, 219);
    let chroma = |value: u8| scale(i32::from(value) - 128 + 112, 224);
    let mut out = Vec::with_capacity(y.len() * 3);
    for (row, line) in y.chunks_exact(picture.width()).enumerate() {
        for (column, value) in line.iter().enumerate() {
            let at = row / 2 * half + column / 2;
            out.extend_from_slice(&[luma(*value), chroma(u[at]), chroma(v[at])]);
        }
    }
    out
}

fn scale(value: i32, range: i32) -> u8 {
    u8::try_from((value * 255 / range).clamp(0, 255)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use contract::model::Size;

    use super::*;

    #[test]
    fn a_picture_becomes_a_jpeg() {
        let size = Size { width: 32, height: 16 };
        let bytes = jpeg(&I420::new(size, vec![128; 32 * 16 * 3 / 2]), 80).unwrap();
        assert_eq!((&bytes[..2], &bytes[bytes.len() - 2..]), (&[0xff, 0xd8][..], &[0xff, 0xd9][..]));
    }

    #[test]
    fn white_and_black_keep_their_range() {
        let size = Size { width: 2, height: 2 };
        let ycc = full_range(&I420::new(size, vec![235, 16, 235, 16, 128, 128]));
        assert_eq!(&ycc[..6], &[255, 127, 127, 0, 127, 127]);
    }
}
