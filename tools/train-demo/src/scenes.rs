//! Scenes to pixels in batches on the device: the same pictures as [`demo_world::render`], up to the outlines' grid.

use std::f64::consts::FRAC_PI_2;

use demo_world::SIDE;
use demo_world::clip::Frame;
use demo_world::render::{OUTLINE_REACH, background, outline};
use demo_world::scene::{Background, Shape};
use tch::{Device, Kind, Tensor};

use crate::codec::upload;

/// How far the corners of shapes reach, in radii.
const FARTHEST: f64 = 1.2;
/// Grid points on a side of an outline.
const GRID: usize = 160;
const S: i64 = SIDE as i64;

#[derive(Debug)]
pub struct BatchRenderer {
    /// `[20, 3, S, S]`, in [-1, 1].
    backgrounds: Tensor,
    /// `[6, 1, GRID, GRID]`
    outlines: Tensor,
    device: Device,
}

/// Columns of [`Frame::row`].
mod column {
    pub(super) const X: i64 = 0;
    pub(super) const ANGLE: i64 = 2;
    pub(super) const RADIUS: i64 = 3;
    pub(super) const SHAPES: [i64; 2] = [4, 5];
    pub(super) const MORPH: i64 = 6;
    pub(super) const RGB: i64 = 7;
    pub(super) const BACKGROUNDS: [i64; 2] = [10, 11];
    pub(super) const FADE: i64 = 12;
    pub(super) const SECOND_X: i64 = 13;
    pub(super) const SECOND_RADIUS: i64 = 15;
    pub(super) const SECOND_SHAPE: i64 = 16;
    pub(super) const SECOND_RGB: i64 = 17;
    pub(super) const SECOND_OPACITY: i64 = 20;
}

impl BatchRenderer {
    pub fn new(device: Device) -> Self {
        let backgrounds: Vec<Tensor> = Background::all()
            .map(|which| Tensor::from_slice(&background(which)).view([S, S, 3]).permute([2, 0, 1]))
            .collect();
        let grid = GRID as i64;
        let outlines: Vec<Tensor> = Shape::ALL
            .iter()
            .map(|shape| Tensor::from_slice(&outline(*shape, GRID)).view([1, grid, grid]))
            .collect();
        Self {
            backgrounds: (Tensor::stack(&backgrounds, 0) / 127.5 - 1.0).to_device(device),
            outlines: Tensor::stack(&outlines, 0).to_device(device),
            device,
        }
    }

    /// `[N, 3, S, S]` f32 in [-1, 1].
    pub fn draw(&self, frames: &[Frame]) -> Tensor {
        let rows = self.rows(frames);
        let index = |column: i64| rows.select(1, column).to_kind(Kind::Int64);
        let [a, b] = column::BACKGROUNDS.map(|c| self.backgrounds.index_select(0, &index(c)));
        let fade = rows.select(1, column::FADE).view([-1, 1, 1, 1]);
        let mut pictures = a.lerp_tensor(&b, &fade);

        let seconds: Vec<i64> =
            (0_i64..).zip(frames).filter(|(_, f)| f.second.opacity > 0.0).map(|(i, _)| i).collect();
        if !seconds.is_empty() {
            let which = upload(&Tensor::from_slice(&seconds), self.device);
            let rows = rows.index_select(0, &which);
            let shape = rows.select(1, column::SECOND_SHAPE).to_kind(Kind::Int64);
            let outlines = self.outlines.index_select(0, &shape);
            let radius = rows.select(1, column::SECOND_RADIUS);
            let cover =
                self.cover(&outlines, &rows.narrow(1, column::SECOND_X, 2), &radius.zeros_like(), &radius);
            let cover = cover * rows.select(1, column::SECOND_OPACITY).view([-1, 1, 1, 1]);
            let painted =
                paint(&pictures.index_select(0, &which), &rows.narrow(1, column::SECOND_RGB, 3), &cover);
            let _ = pictures.index_copy_(0, &which, &painted);
        }

        let [a, b] = column::SHAPES.map(|c| self.outlines.index_select(0, &index(c)));
        let outlines = a.lerp_tensor(&b, &rows.select(1, column::MORPH).view([-1, 1, 1, 1]));
        let (angle, radius) = (rows.select(1, column::ANGLE), rows.select(1, column::RADIUS));
        let cover = self.cover(&outlines, &rows.narrow(1, column::X, 2), &angle, &radius);
        paint(&pictures, &rows.narrow(1, column::RGB, 3), &cover)
    }

    /// Where the objects of frames are: `[N, 1, S, S]`, from 0 to 1.
    pub fn objects(&self, frames: &[Frame]) -> Tensor {
        let rows = self.rows(frames);
        // As discs: what is around an outline belongs to it.
        let disc = |x: i64, radius: i64| {
            let [dx, dy] = self.offsets(&rows.narrow(1, x, 2));
            let distance = (dx.square() + dy.square()).sqrt();
            (rows.select(1, radius).view([-1, 1, 1]) * FARTHEST - distance + 0.5).clamp(0.0, 1.0)
        };
        let second = disc(column::SECOND_X, column::SECOND_RADIUS)
            * rows.select(1, column::SECOND_OPACITY).view([-1, 1, 1]);
        disc(column::X, column::RADIUS).maximum(&second).unsqueeze(1)
    }

    /// `[N, Frame::ROW]` f32.
    fn rows(&self, frames: &[Frame]) -> Tensor {
        let rows: Vec<f32> = frames.iter().flat_map(Frame::row).collect();
        upload(&Tensor::from_slice(&rows).view([-1, Frame::ROW as i64]), self.device)
    }

    /// How far pixels are from points `[N, 2]` the short way round: along x `[N, 1, S]`, along y `[N, S, 1]`.
    fn offsets(&self, at: &Tensor) -> [Tensor; 2] {
        let places = Tensor::arange(S, (Kind::Float, self.device)) + 0.5;
        [0, 1].map(|axis: i64| {
            let offset = places.unsqueeze(0) - at.narrow(1, axis, 1);
            let turns = (&offset / S as f64).round();
            (offset - turns * S as f64).unsqueeze(1 + axis)
        })
    }

    /// How much of each pixel `[N, 1, S, S]` an object covers. `at` is `[N, 2]`, `angle` and `radius` `[N]`.
    fn cover(&self, outlines: &Tensor, at: &Tensor, angle: &Tensor, radius: &Tensor) -> Tensor {
        let scale = (radius * f64::from(OUTLINE_REACH)).reciprocal();
        let (sin, cos) = ((angle.sin() * &scale).view([-1, 1, 1]), (angle.cos() * &scale).view([-1, 1, 1]));
        let [dx, dy] = self.offsets(at);
        let grid = Tensor::stack(&[&cos * &dx + &sin * &dy, &cos * &dy - &sin * &dx], -1);
        // Bilinear, the border's value outside it, pixels as areas.
        let distance = outlines.grid_sampler(&grid, 0, 1, false);
        (distance * radius.view([-1, 1, 1, 1])).neg().g_add_scalar_(0.5).clamp_(0.0, 1.0)
    }
}

fn paint(pictures: &Tensor, rgb: &Tensor, cover: &Tensor) -> Tensor {
    let rgb: Tensor = rgb / 127.5 - 1.0;
    pictures.lerp_tensor(&rgb.unsqueeze(-1).unsqueeze(-1), cover)
}

/// A rate that starts slowly, and falls as a quarter of a cosine from `1` to a twentieth. `progress` is in [0, 1].
pub fn rate(progress: f64, step: i64, warm_up: i64) -> f64 {
    let start = ((step + 1) as f64 / warm_up.max(1) as f64).min(1.0);
    start * (0.05 + 0.95 * (progress.clamp(0.0, 1.0) * FRAC_PI_2).cos())
}
