//! What can be seen in a clip: colour, shape, motion and background, read off the pixels by matched templates.
//!
//! Backgrounds are compared whole. What differs from the best of them is the object; its outline, where pixels are half way
//! from the background to its colour, is brought to unit area and compared with all shapes at all angles, sharp and rounded;
//! its path, area and angle over time tell the motion.

use std::fmt;

use crate::SIDE;
use crate::motion::{GROWTH, SPIN};
use crate::render::{background, wrapped};
use crate::scene::{Background, Colour, Corner, Motion, Scene, Shape};
use crate::shape::{distance, symmetry};

/// A pixel that differs more from the background, in any channel, belongs to an object.
const FOREGROUND: f32 = 30.0;
/// A difference from a background counts up to this much: an object must not decide which one it is.
const OUTLIER: f32 = 40.0;
/// Points on a side of the grid on which outlines are compared, and half of what it covers, in radii of a circle of the
/// same area.
const GRID: usize = 45;
const REACH: f32 = 1.8;
/// Angles of a shape that are compared, over its symmetry.
const ANGLES: usize = 24;
/// Points on a side of the grid on which templates are drawn.
const FINE: usize = 180;
/// Softness of the templates, as the deviation of a Gaussian, in radii of the shape: a decoder rounds what is small, and a
/// rounded cross covers a square better than a sharp cross.
const SOFT: [f32; 3] = [0.0, 0.1, 0.2];
/// Objects of fewer pixels are not looked at.
const LEAST: usize = 60;
/// Frames between which movement is measured.
const STRIDE: usize = 4;
/// Around a second object, pixels that do not count.
const CORNER_REACH: f32 = 21.0;

/// What was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub background: Background,
    /// The rest is `None` where no object was found.
    pub colour: Option<Colour>,
    /// Mean RGB of the object.
    pub rgb: [f32; 3],
    pub shape: Option<Shape>,
    pub motion: Option<Motion>,
    /// Mean overlap with the best outline, 1 for the same.
    pub likeness: f32,
}

#[derive(Debug)]
struct Template {
    shape: Shape,
    angle: f32,
    inside: Vec<bool>,
    count: usize,
}

/// One frame's object.
#[derive(Clone, Debug)]
struct Object {
    x: f32,
    y: f32,
    area: usize,
    rgb: [f32; 3],
    /// The outline on the grid of the templates.
    outline: Vec<bool>,
}

#[derive(Debug)]
pub struct Meter {
    backgrounds: Vec<(Background, Vec<f32>)>,
    templates: Vec<Template>,
}

/// Coordinates of the grid's points along one axis.
fn grid(i: usize) -> f32 {
    ((i as f32 + 0.5) / GRID as f32 * 2.0 - 1.0) * REACH
}

/// A shape as a lens of some softness (see [`SOFT`]) shows it at half height, at unit area.
fn template(shape: Shape, angle: f32, soft: f32) -> Template {
    let (sin, cos) = angle.sin_cos();
    let at = |i: usize| ((i as f32 + 0.5) / FINE as f32 * 2.0 - 1.0) * REACH;
    let inside = |n: usize| {
        let (x, y) = (at(n % FINE), at(n / FINE));
        distance(shape, cos * x + sin * y, cos * y - sin * x) < 0.0
    };
    let pixel = 2.0 * REACH / FINE as f32;
    let sharp: Vec<f32> = (0..FINE * FINE).map(|n| if inside(n) { 1.0 } else { 0.0 }).collect();
    let shown = blurred(&sharp, soft / pixel);
    let area = shown.iter().filter(|value| **value > 0.5).count() as f32 * pixel * pixel;
    // The grid is in radii of a circle of that area.
    let radius = (area / std::f32::consts::PI).sqrt();
    let nearest = |place: f32| ((place * radius / REACH + 1.0) / 2.0 * FINE as f32) as usize;
    let inside: Vec<bool> = (0..GRID * GRID)
        .map(|n| {
            let (x, y) = (nearest(grid(n % GRID)), nearest(grid(n / GRID)));
            x < FINE && y < FINE && shown[y * FINE + x] > 0.5
        })
        .collect();
    let count = inside.iter().filter(|inside| **inside).count();
    Template { shape, angle, inside, count }
}

/// A picture of `FINE` x `FINE` after a Gaussian of this deviation in pixels.
fn blurred(picture: &[f32], deviation: f32) -> Vec<f32> {
    if deviation <= 0.0 {
        return picture.to_vec();
    }
    let reach = (3.0 * deviation).ceil() as usize;
    let weights: Vec<f32> =
        (0..=2 * reach).map(|k| (-0.5 * ((k as f32 - reach as f32) / deviation).powi(2)).exp()).collect();
    let whole: f32 = weights.iter().sum();
    let pass = |from: &[f32], step: usize, place: fn(usize) -> usize| -> Vec<f32> {
        (0..from.len())
            .map(|n| {
                let along = |k: usize| (place(n) + k).checked_sub(reach).filter(|to| *to < FINE);
                let terms = weights.iter().enumerate().filter_map(|(k, weight)| {
                    let to = along(k)?;
                    Some(weight * from[n - place(n) * step + to * step])
                });
                terms.sum::<f32>() / whole
            })
            .collect()
    };
    pass(&pass(picture, 1, |n| n % FINE), FINE, |n| n / FINE)
}

impl Default for Meter {
    fn default() -> Self {
        let templates = Shape::ALL.iter().flat_map(|shape| {
            let angles = symmetry(*shape)
                .map_or(vec![0.0], |turn| (0..ANGLES).map(|n| turn * n as f32 / ANGLES as f32).collect());
            angles.into_iter().flat_map(|angle| SOFT.map(|soft| template(*shape, angle, soft)))
        });
        Self {
            backgrounds: Background::all().map(|which| (which, background(which))).collect(),
            templates: templates.collect(),
        }
    }
}

impl Meter {
    /// Looks at consecutive frames (RGB bytes, row by row); motion needs some forty of them. A second object that is known
    /// to rest in a corner is left out.
    ///
    /// # Panics
    /// If a frame has another size.
    pub fn look(&self, frames: &[Vec<u8>], corner: Option<Corner>) -> Seen {
        let (background, picture) = self.background(frames);
        let objects: Vec<Option<Object>> =
            frames.iter().map(|frame| object(frame, picture, corner)).collect();
        let found: Vec<&Object> = objects.iter().flatten().collect();
        if found.len() * 2 < frames.len() {
            return Seen {
                background,
                colour: None,
                rgb: [0.0; 3],
                shape: None,
                motion: None,
                likeness: 0.0,
            };
        }
        let rgb = std::array::from_fn(|i| median(found.iter().map(|object| object.rgb[i]).collect()));
        let (shape, likeness) = self.shape(&found);
        let motion = self.motion(&objects, shape);
        Seen {
            background,
            colour: Some(nearest(rgb)),
            rgb,
            shape: Some(shape),
            motion: Some(motion),
            likeness,
        }
    }

    fn background(&self, frames: &[Vec<u8>]) -> (Background, &[f32]) {
        let step = frames.len().div_ceil(6).max(1);
        let cost = |picture: &[f32]| -> f64 {
            let off = |frame: &Vec<u8>| -> f64 {
                let pixels = frame.chunks_exact(3).zip(picture.chunks_exact(3));
                pixels.map(|(seen, wanted)| f64::from(difference(seen, wanted).min(OUTLIER))).sum()
            };
            frames.iter().step_by(step).map(off).sum()
        };
        let costs = self.backgrounds.iter().map(|(which, picture)| (*which, picture, cost(picture)));
        let best = costs.min_by(|a, b| a.2.total_cmp(&b.2));
        best.map(|(which, picture, _)| (which, picture.as_slice())).expect("there are backgrounds")
    }

    /// The shape that fits most frames best, and how well.
    fn shape(&self, found: &[&Object]) -> (Shape, f32) {
        let step = found.len().div_ceil(8).max(1);
        let mut totals = vec![0.0_f32; Shape::ALL.len()];
        let mut looked = 0;
        for object in found.iter().step_by(step) {
            let mut best = vec![0.0_f32; Shape::ALL.len()];
            for template in &self.templates {
                let likeness = overlap(&object.outline, template);
                let slot = &mut best[template.shape.index()];
                *slot = slot.max(likeness);
            }
            totals.iter_mut().zip(best).for_each(|(total, best)| *total += best);
            looked += 1;
        }
        let best = (0..totals.len()).max_by(|a, b| totals[*a].total_cmp(&totals[*b])).unwrap_or(0);
        (Shape::ALL[best], totals[best] / looked.max(1) as f32)
    }

    fn motion(&self, objects: &[Option<Object>], shape: Shape) -> Motion {
        let pairs: Vec<(&Object, &Object)> = objects
            .iter()
            .zip(objects.iter().skip(STRIDE))
            .filter_map(|(before, after)| Some((before.as_ref()?, after.as_ref()?)))
            .collect();
        let per_frame = |value: f32| value / STRIDE as f32;
        let growth =
            median(pairs.iter().map(|(a, b)| per_frame((b.area as f32 / a.area as f32).ln())).collect());
        if growth > GROWTH.ln() {
            return Motion::Growing;
        }
        let moves: Vec<(f32, f32)> = pairs
            .iter()
            .map(|(a, b)| (per_frame(wrapped(b.x - a.x)), per_frame(wrapped(b.y - a.y))))
            .collect();
        let mean =
            |of: &dyn Fn(&(f32, f32)) -> f32| moves.iter().map(of).sum::<f32>() / moves.len().max(1) as f32;
        let (across, down) = (mean(&|m| m.0), mean(&|m| m.1));
        let (wide, high, speed) = (mean(&|m| m.0.abs()), mean(&|m| m.1.abs()), mean(&|m| m.0.hypot(m.1)));
        if speed < 0.6 {
            return if self.spin(&pairs, shape) > SPIN / 3.0 { Motion::Spinning } else { Motion::Still };
        }
        if across.hypot(down) > 0.8 * speed {
            return match (across.abs() > down.abs(), across > 0.0, down > 0.0) {
                (true, true, _) => Motion::Right,
                (true, false, _) => Motion::Left,
                (false, _, true) => Motion::Down,
                (false, _, false) => Motion::Up,
            };
        }
        if wide < 0.3 * high { Motion::Bouncing } else { Motion::Circling }
    }

    /// Radians a frame.
    fn spin(&self, pairs: &[(&Object, &Object)], shape: Shape) -> f32 {
        let Some(turn) = symmetry(shape) else { return 0.0 };
        let angle = |object: &Object| {
            let own = self.templates.iter().filter(|template| template.shape == shape);
            let best = own.max_by(|a, b| overlap(&object.outline, a).total_cmp(&overlap(&object.outline, b)));
            best.map_or(0.0, |template| template.angle)
        };
        let (mut sin, mut cos) = (0.0, 0.0);
        for (before, after) in pairs.iter().step_by(2) {
            let (s, c) = ((angle(after) - angle(before)) / turn * std::f32::consts::TAU).sin_cos();
            sin += s;
            cos += c;
        }
        (sin.atan2(cos) / std::f32::consts::TAU * turn / STRIDE as f32).abs()
    }
}

/// Largest difference of a pixel's channels.
fn difference(seen: &[u8], wanted: &[f32]) -> f32 {
    seen.iter().zip(wanted).map(|(seen, wanted)| (f32::from(*seen) - wanted).abs()).fold(0.0, f32::max)
}

fn nearest(rgb: [f32; 3]) -> Colour {
    let off = |colour: Colour| -> f32 { colour.rgb().iter().zip(rgb).map(|(a, b)| (a - b).powi(2)).sum() };
    *Colour::ALL.iter().min_by(|a, b| off(**a).total_cmp(&off(**b))).unwrap_or(&Colour::White)
}

fn median(mut values: Vec<f32>) -> f32 {
    values.sort_by(f32::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Intersection over union.
fn overlap(outline: &[bool], template: &Template) -> f32 {
    let own = outline.iter().filter(|inside| **inside).count();
    let both = outline.iter().zip(&template.inside).filter(|(a, b)| **a && **b).count();
    both as f32 / (own + template.count - both).max(1) as f32
}

/// The largest thing in a frame that is not background.
fn object(frame: &[u8], background: &[f32], corner: Option<Corner>) -> Option<Object> {
    assert_eq!(frame.len(), background.len(), "a frame of another size");
    let hidden = |n: usize| {
        corner.is_some_and(|corner| {
            let (x, y) = corner.position();
            ((n % SIDE) as f32 + 0.5 - x).hypot((n / SIDE) as f32 + 0.5 - y) < CORNER_REACH
        })
    };
    let differs: Vec<bool> = frame
        .chunks_exact(3)
        .zip(background.chunks_exact(3))
        .enumerate()
        .map(|(n, (seen, wanted))| difference(seen, wanted) > FOREGROUND && !hidden(n))
        .collect();
    let around = neighbours(&differs);
    let mut mask: Vec<bool> =
        differs.iter().zip(&around).map(|(here, around)| *here && *around >= 14).collect();
    largest(&mut mask);
    let area = mask.iter().filter(|inside| **inside).count();
    if area < LEAST {
        return None;
    }
    let (x, y) = (centre(&mask, |n| n % SIDE), centre(&mask, |n| n / SIDE));
    // Away from the edge, where colours are mixed.
    let core = |n: &usize| mask[*n] && around[*n] == 25;
    let mut inner: Vec<usize> = (0..mask.len()).filter(core).collect();
    if inner.len() < 12 {
        inner = (0..mask.len()).filter(|n| mask[*n]).collect();
    }
    let rgb = std::array::from_fn(|i| median(inner.iter().map(|n| f32::from(frame[3 * n + i])).collect()));
    let near = neighbours(&mask);
    let covered: Vec<bool> = (0..mask.len())
        .map(|n| {
            near[n] > 0 && !hidden(n) && coverage(pixel_at(frame, n), &background[3 * n..][..3], rgb) > 0.5
        })
        .collect();
    Some(Object { x, y, area, rgb, outline: outline(&covered) })
}

fn pixel_at(frame: &[u8], n: usize) -> [f32; 3] {
    std::array::from_fn(|i| f32::from(frame[3 * n + i]))
}

/// How far a pixel is on its way from the background to the object's colour: edges are mixtures of both.
fn coverage(seen: [f32; 3], background: &[f32], colour: [f32; 3]) -> f32 {
    let (mut along, mut whole) = (0.0, 0.0);
    for i in 0..3 {
        let way = colour[i] - background[i];
        along += (seen[i] - background[i]) * way;
        whole += way * way;
    }
    along / whole.max(1.0)
}

/// A mask on the grid of the templates: its centre in the middle, brought to unit area.
fn outline(mask: &[bool]) -> Vec<bool> {
    let area = mask.iter().filter(|inside| **inside).count();
    let (x, y) = (centre(mask, |n| n % SIDE), centre(mask, |n| n / SIDE));
    let radius = (area as f32 / std::f32::consts::PI).sqrt();
    let pixel = |at: f32| at.rem_euclid(SIDE as f32) as usize % SIDE;
    (0..GRID * GRID)
        .map(|n| mask[pixel(y + grid(n / GRID) * radius) * SIDE + pixel(x + grid(n % GRID) * radius)])
        .collect()
}

/// How many of the 25 pixels around each are set; the picture is a torus.
fn neighbours(mask: &[bool]) -> Vec<u8> {
    let sum = |values: &dyn Fn(usize) -> u8, along: &dyn Fn(usize, usize) -> usize| -> Vec<u8> {
        (0..SIDE * SIDE).map(|n| (0..5).map(|k| values(along(n, SIDE + k - 2))).sum()).collect()
    };
    let rows = sum(&|n| u8::from(mask[n]), &|n, k| n / SIDE * SIDE + (n % SIDE + k) % SIDE);
    sum(&|n| rows[n], &|n, k| (n / SIDE + k) % SIDE * SIDE + n % SIDE)
}

/// Leaves only the largest connected part.
fn largest(mask: &mut [bool]) {
    let mut part = vec![0_usize; mask.len()];
    let mut sizes = vec![0_usize];
    for start in 0..mask.len() {
        if !mask[start] || part[start] != 0 {
            continue;
        }
        let own = sizes.len();
        sizes.push(0);
        let mut open = vec![start];
        part[start] = own;
        while let Some(n) = open.pop() {
            sizes[own] += 1;
            let (x, y) = (n % SIDE, n / SIDE);
            for (dx, dy) in [(1, 0), (SIDE - 1, 0), (0, 1), (0, SIDE - 1)] {
                let next = (y + dy) % SIDE * SIDE + (x + dx) % SIDE;
                if mask[next] && part[next] == 0 {
                    part[next] = own;
                    open.push(next);
                }
            }
        }
    }
    let best = (1..sizes.len()).max_by_key(|own| sizes[*own]).unwrap_or(0);
    mask.iter_mut().zip(&part).for_each(|(inside, part)| *inside = *inside && *part == best);
}

/// Mean position along one axis of the torus.
fn centre(mask: &[bool], along: impl Fn(usize) -> usize) -> f32 {
    let turn = std::f32::consts::TAU / SIDE as f32;
    let (mut sin, mut cos) = (0.0, 0.0);
    for n in (0..mask.len()).filter(|n| mask[*n]) {
        let (s, c) = ((along(n) as f32 + 0.5) * turn).sin_cos();
        sin += s;
        cos += c;
    }
    (sin.atan2(cos) / turn).rem_euclid(SIDE as f32)
}

/// How often what was seen is what was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    pub clips: usize,
    pub colour: usize,
    pub shape: usize,
    pub motion: usize,
    pub background: usize,
}

impl Score {
    /// Counts a clip; returns whether all was right.
    pub fn add(&mut self, scene: &Scene, seen: &Seen) -> bool {
        let right = [
            seen.colour == Some(scene.colour),
            seen.shape == Some(scene.shape),
            seen.motion == Some(scene.motion),
            seen.background == scene.background,
        ];
        self.clips += 1;
        let counts = [&mut self.colour, &mut self.shape, &mut self.motion, &mut self.background];
        counts.into_iter().zip(right).for_each(|(count, right)| *count += usize::from(right));
        right.iter().all(|right| *right)
    }

    /// Percent of the clips.
    pub fn percent(&self, count: usize) -> f64 {
        100.0 * count as f64 / self.clips.max(1) as f64
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let part = |count| self.percent(count);
        write!(
            f,
            "{} clips: colour {:.1} %, shape {:.1} %, motion {:.1} %, background {:.1} %",
            self.clips,
            part(self.colour),
            part(self.shape),
            part(self.motion),
            part(self.background)
        )
    }
}
