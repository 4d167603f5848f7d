//! Decoded tensors as pictures.

use contract::model::Size;
use tch::{Kind, Tensor};
use video::{I420, MATRIX, OFFSET};

/// Decoded pixels `[1, F, 3, H, W]`, RGB in [-1, 1], any float dtype and device -> `F` pictures.
///
/// # Errors
/// libtorch refuses the shape.
pub(crate) fn convert(pixels: &Tensor) -> Result<Vec<I420>, tch::TchError> {
    let _guard = tch::no_grad_guard();
    let (_, frames, channels, height, width) = pixels.size5()?;
    // x in [-1, 1] is (x + 1) / 2 in [0, 1]: fold the half into matrix and offset.
    let matrix = Tensor::from_slice(&MATRIX).reshape([3, 3]) / 2.0;
    let offset = Tensor::from_slice(&OFFSET).reshape([3, 1])
        + matrix.sum_dim_intlist([1].as_slice(), true, Kind::Float);
    let (matrix, offset) = (matrix.to_device(pixels.device()), offset.to_device(pixels.device()));
    let rgb = pixels.f_reshape([frames, channels, height * width])?.to_kind(Kind::Float);
    let yuv = matrix.f_matmul(&rgb)? + offset;
    let luma = yuv.narrow(1, 0, 1).reshape([frames, height * width]);
    let chroma = yuv
        .narrow(1, 1, 2)
        .reshape([frames, 2, height, width])
        .f_avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>)?
        .reshape([frames, height * width / 2]);
    let bytes = Tensor::f_cat(&[luma, chroma], 1)?
        .round_()
        .clamp_(0.0, 255.0)
        .to_kind(Kind::Uint8)
        .to_device(tch::Device::Cpu)
        .contiguous();
    let size = Size { width: u32::try_from(width).unwrap_or(0), height: u32::try_from(height).unwrap_or(0) };
    let picture = I420::bytes(size);
    let mut all = vec![0u8; picture * usize::try_from(frames).unwrap_or(0)];
    bytes.f_copy_data_u8(&mut all, picture * usize::try_from(frames).unwrap_or(0))?;
    Ok(all.chunks_exact(picture).map(|data| I420::new(size, data.to_vec())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uniform(rgb: [f32; 3]) -> Tensor {
        Tensor::from_slice(&rgb).reshape([1, 1, 3, 1, 1]).expand([1, 1, 3, 4, 6], false)
    }

    #[test]
    fn primaries_become_the_values_of_the_standard() {
        for (rgb, yuv) in [
            ([-1.0, -1.0, -1.0], [16, 128, 128]),
            ([1.0, 1.0, 1.0], [235, 128, 128]),
            ([1.0, -1.0, -1.0], [81, 90, 240]),
            ([-1.0, 1.0, -1.0], [145, 54, 34]),
            ([-1.0, -1.0, 1.0], [41, 240, 110]),
        ] {
            let picture = convert(&uniform(rgb)).unwrap().remove(0);
            let (y, u, v) = picture.planes();
            assert_eq!((y.len(), u.len(), v.len()), (24, 6, 6));
            assert_eq!([y[5], u[3], v[5]], yuv, "{rgb:?}");
        }
    }

    #[test]
    fn frames_and_rows_keep_their_order() {
        let pixels = Tensor::arange(2 * 4 * 6, (Kind::Float, tch::Device::Cpu)) / 48.0 * 2.0 - 1.0;
        let pixels = pixels.reshape([1, 2, 1, 4, 6]).expand([1, 2, 3, 4, 6], false);
        let pictures = convert(&pixels).unwrap();
        assert_eq!(pictures.len(), 2);
        let luma: Vec<u8> = pictures.iter().flat_map(|p| p.planes().0.to_vec()).collect();
        assert!(luma.is_sorted() && luma[0] == 16 && luma[47] > 225, "{luma:?}");
    }
}
