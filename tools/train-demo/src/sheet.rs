//! Contact sheets: clips as rows of frames in one PNG.

use std::path::Path;

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

/// Each clip `[3, F, H, W]` in [-1, 1] is a row of every `stride`-th frame, at half its size.
///
/// # Errors
/// The file cannot be written.
pub fn write(clips: &[Tensor], stride: i64, path: &Path) -> Result<()> {
    let rows: Vec<Tensor> = clips
        .iter()
        .map(|clip| {
            let frames = clip.slice(1, 0, None, stride).to_device(tch::Device::Cpu).to_kind(Kind::Float);
            // [3, F, H, W] -> [3, H, F * W]
            let frames = frames.transpose(0, 1).avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None);
            let frames = frames.constant_pad_nd([0, 2, 0, 2]);
            Tensor::cat(&frames.unbind(0), 2)
        })
        .collect();
    let sheet = (Tensor::cat(&rows, 1) + 1.0) * 127.5;
    let sheet = sheet.round().clamp(0.0, 255.0).to_kind(Kind::Uint8);
    tch::vision::image::save(&sheet, path).with_context(|| format!("cannot write {}", path.display()))
}
