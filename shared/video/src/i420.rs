//! Pictures in the form that encoders take and decoders give, and what they are in RGB.

use contract::model::Size;

/// One picture, 4:2:0 planar, BT.601 limited range. Even width and height.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct I420 {
    size: Size,
    /// Y, then U, then V, without padding between rows.
    data: Vec<u8>,
}

impl I420 {
    /// `data` holds width * height luma bytes and half as many of chroma.
    #[must_use]
    pub fn new(size: Size, data: Vec<u8>) -> Self {
        debug_assert_eq!(data.len(), Self::bytes(size));
        Self { size, data }
    }

    /// Bytes of a picture.
    #[must_use]
    pub fn bytes(size: Size) -> usize {
        (size.width * size.height * 3 / 2) as usize
    }

    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    #[must_use]
    pub fn width(&self) -> usize {
        self.size.width as usize
    }

    #[must_use]
    pub fn height(&self) -> usize {
        self.size.height as usize
    }

    /// Y, U, V; rows of width, width / 2, width / 2 bytes.
    #[must_use]
    pub fn planes(&self) -> (&[u8], &[u8], &[u8]) {
        let luma = self.width() * self.height();
        let (y, chroma) = self.data.split_at(luma);
        let (u, v) = chroma.split_at(luma / 4);
        (y, u, v)
    }
}

/// Rows of the RGB (0 to 1) to YUV (0 to 255) matrix of BT.601, limited range.
pub const MATRIX: [f32; 9] = [65.481, 128.553, 24.966, -37.797, -74.203, 112.0, 112.0, -93.786, -18.214];
/// Y, U and V of black.
pub const OFFSET: [f32; 3] = [16.0, 128.0, 128.0];
/// Weights of red and blue in luma, from the same standard.
const RED: f32 = 0.299;
const BLUE: f32 = 0.114;

impl I420 {
    /// Of RGB bytes, row by row; chroma is the mean of four pixels.
    #[must_use]
    pub fn from_rgb(size: Size, rgb: &[u8]) -> Self {
        let (width, height) = (size.width as usize, size.height as usize);
        debug_assert_eq!(rgb.len(), 3 * width * height);
        let part = |row: usize, pixel: &[u8]| -> f32 {
            let weights = &MATRIX[3 * row..3 * row + 3];
            weights.iter().zip(pixel).map(|(weight, value)| weight * f32::from(*value) / 255.0).sum()
        };
        let byte = |value: f32| value.round().clamp(0.0, 255.0) as u8;
        let mut data: Vec<u8> = rgb.chunks_exact(3).map(|pixel| byte(OFFSET[0] + part(0, pixel))).collect();
        for plane in [1, 2] {
            for at in 0..width * height / 4 {
                let (x, y) = (at % (width / 2) * 2, at / (width / 2) * 2);
                let four = [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(dx, dy)| {
                    let pixel = 3 * ((y + dy) * width + x + dx);
                    part(plane, &rgb[pixel..pixel + 3])
                });
                data.push(byte(OFFSET[plane] + four.iter().sum::<f32>() / 4.0));
            }
        }
        Self::new(size, data)
    }

    /// RGB bytes, row by row; every pixel has the chroma of the four that share it.
    #[must_use]
    pub fn to_rgb(&self) -> Vec<u8> {
        let (y, u, v) = self.planes();
        let width = self.width();
        let mut rgb = Vec::with_capacity(3 * y.len());
        for (at, luma) in y.iter().enumerate() {
            let shared = at / width / 2 * (width / 2) + at % width / 2;
            let luma = (f32::from(*luma) - OFFSET[0]) / 219.0;
            let [blue, red] = [u, v].map(|plane| (f32::from(plane[shared]) - OFFSET[1]) / 224.0);
            // The inverse of the matrix above, by the standard's weights of red and blue in luma.
            let (r, b) = (luma + 2.0 * (1.0 - RED) * red, luma + 2.0 * (1.0 - BLUE) * blue);
            let g = (luma - RED * r - BLUE * b) / (1.0 - RED - BLUE);
            rgb.extend([r, g, b].map(|value| (value * 255.0).round().clamp(0.0, 255.0) as u8));
        }
        rgb
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { width: 4, height: 2 };

    #[test]
    fn primaries_become_the_values_of_the_standard_and_come_back() {
        for (rgb, yuv) in [
            ([0, 0, 0], [16, 128, 128]),
            ([255, 255, 255], [235, 128, 128]),
            ([255, 0, 0], [81, 90, 240]),
            ([0, 255, 0], [145, 54, 34]),
            ([0, 0, 255], [41, 240, 110]),
        ] {
            let picture = I420::from_rgb(SIZE, &rgb.repeat(8));
            let (y, u, v) = picture.planes();
            assert_eq!([y[5], u[1], v[1]], yuv, "{rgb:?}");
            let off = picture.to_rgb().iter().zip(rgb.repeat(8)).map(|(a, b)| a.abs_diff(b)).max();
            assert!(off <= Some(2), "{rgb:?}: {:?}", picture.to_rgb());
        }
    }

    #[test]
    fn pixels_keep_their_places() {
        let grey: Vec<u8> = (0..8).flat_map(|n| [30 * n; 3]).collect();
        let picture = I420::from_rgb(SIZE, &grey);
        assert!(picture.planes().0.is_sorted());
        assert!(picture.to_rgb().iter().zip(&grey).all(|(a, b)| a.abs_diff(*b) <= 1));
    }
}
