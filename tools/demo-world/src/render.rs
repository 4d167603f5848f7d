//! Frames to pixels, and the pictures that faster renderers are made of.

use crate::SIDE;
use crate::clip::Frame;
use crate::scene::{Background, Pattern, Shape};
use crate::shape::distance;

/// Bytes of a picture, RGB, row by row.
pub const PICTURE: usize = SIDE * SIDE * 3;

/// Half a side of the square that [`outline`] covers, in radii.
pub const OUTLINE_REACH: f32 = 1.6;

/// Signed distances of a shape on a grid of `side` x `side` points over `[-OUTLINE_REACH, OUTLINE_REACH]`, row by row.
pub fn outline(shape: Shape, side: usize) -> Vec<f32> {
    let at = |i: usize| ((i as f32 + 0.5) / side as f32 * 2.0 - 1.0) * OUTLINE_REACH;
    (0..side).flat_map(|row| (0..side).map(move |column| distance(shape, at(column), at(row)))).collect()
}

/// A background alone: `[SIDE, SIDE, 3]`, 0..=255.
pub fn background(which: Background) -> Vec<f32> {
    let tone = which.tone.rgb();
    let mut picture = Vec::with_capacity(PICTURE);
    for row in 0..SIDE {
        for column in 0..SIDE {
            let lift = match which.pattern {
                Pattern::Plain | Pattern::Stars => 0.0,
                Pattern::Gradient => 90.0 * (row as f32 / SIDE as f32) - 15.0,
                Pattern::Checker if (row / 20 + column / 20) % 2 == 1 => 42.0,
                Pattern::Checker => 0.0,
            };
            let shine = if which.pattern == Pattern::Stars { starlight(column, row) } else { 0.0 };
            picture.extend(tone.map(|value| {
                let value = (value + lift).clamp(0.0, 255.0);
                value + (235.0 - value) * shine
            }));
        }
    }
    picture
}

/// How much of a star covers a pixel: the same sky for everyone, one star in most cells of 20 pixels.
fn starlight(column: usize, row: usize) -> f32 {
    let (cell_x, cell_y) = (column / 20, row / 20);
    let mix = (cell_x * 7 + cell_y * 13 + (cell_x * cell_y) * 5) % 11;
    if mix >= 9 {
        return 0.0;
    }
    let x = (cell_x * 20) as f32 + 4.0 + (mix * 5 % 13) as f32;
    let y = (cell_y * 20) as f32 + 4.0 + (mix * 7 % 12) as f32;
    let radius = 2.0 + 0.25 * (mix % 4) as f32;
    let off = (column as f32 + 0.5 - x).hypot(row as f32 + 0.5 - y);
    (radius + 0.5 - off).clamp(0.0, 1.0)
}

/// The shorter way on the torus.
pub(crate) fn wrapped(offset: f32) -> f32 {
    let side = SIDE as f32;
    offset - side * (offset / side).round()
}

/// Draws frames; keeps the backgrounds.
#[derive(Debug)]
pub struct Renderer {
    backgrounds: Vec<Vec<f32>>,
}

impl Default for Renderer {
    fn default() -> Self {
        Self { backgrounds: Background::all().map(background).collect() }
    }
}

impl Renderer {
    /// A frame's picture: RGB bytes, [`PICTURE`] of them.
    pub fn draw(&self, frame: &Frame) -> Vec<u8> {
        let [a, b] = frame.backgrounds.map(|index| &self.backgrounds[index]);
        let mut picture: Vec<f32> = a.iter().zip(b).map(|(a, b)| a + (b - a) * frame.fade).collect();
        let second = &frame.second;
        let shape = Shape::ALL[second.shape];
        if second.opacity > 0.0 {
            paint(
                &mut picture,
                (second.x, second.y),
                0.0,
                second.radius,
                second.rgb,
                second.opacity,
                |x, y| distance(shape, x, y),
            );
        }
        let shapes = frame.shapes.map(|index| Shape::ALL[index]);
        paint(&mut picture, (frame.x, frame.y), frame.angle, frame.radius, frame.rgb, 1.0, |x, y| {
            let [a, b] = shapes.map(|shape| distance(shape, x, y));
            a + (b - a) * frame.morph
        });
        picture.into_iter().map(|value| value.round().clamp(0.0, 255.0) as u8).collect()
    }
}

fn paint(
    picture: &mut [f32],
    at: (f32, f32),
    angle: f32,
    radius: f32,
    rgb: [f32; 3],
    opacity: f32,
    distance: impl Fn(f32, f32) -> f32,
) {
    let (sin, cos) = angle.sin_cos();
    let reach = OUTLINE_REACH * radius;
    for row in 0..SIDE {
        let dy = wrapped(row as f32 + 0.5 - at.1);
        if dy.abs() > reach {
            continue;
        }
        for column in 0..SIDE {
            let dx = wrapped(column as f32 + 0.5 - at.0);
            if dx.abs() > reach {
                continue;
            }
            let (x, y) = ((cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius);
            let cover = (0.5 - distance(x, y) * radius).clamp(0.0, 1.0) * opacity;
            let pixel = &mut picture[(row * SIDE + column) * 3..][..3];
            for (value, paint) in pixel.iter_mut().zip(rgb) {
                *value += (paint - *value) * cover;
            }
        }
    }
}
