//! Frames as numbers: what a renderer needs to know of each, on the way from one scene to another.

use crate::motion::State;
use crate::scene::{COMPANION_RADIUS, Motion, Scene};

/// A point on the way from one scene to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    pub from: Scene,
    pub to: Scene,
    /// 0 is `from`, 1 is `to`.
    pub amount: f32,
}

/// A second object in a frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SecondObject {
    pub x: f32,
    pub y: f32,
    pub radius: f32,
    /// Index of its shape.
    pub shape: usize,
    pub rgb: [f32; 3],
    pub opacity: f32,
}

/// One frame. Colours are 0..=255, lengths pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame {
    pub x: f32,
    pub y: f32,
    pub angle: f32,
    pub radius: f32,
    /// Indices of two shapes, between which `morph` is.
    pub shapes: [usize; 2],
    pub morph: f32,
    pub rgb: [f32; 3],
    /// Indices of two backgrounds, between which `fade` is.
    pub backgrounds: [usize; 2],
    pub fade: f32,
    pub second: SecondObject,
}

impl Frame {
    /// Numbers in [`Self::row`].
    pub const ROW: usize = 21;

    /// All of it as numbers, for renderers that work on many frames at once.
    pub fn row(&self) -> [f32; Self::ROW] {
        let second = &self.second;
        [
            self.x,
            self.y,
            self.angle,
            self.radius,
            self.shapes[0] as f32,
            self.shapes[1] as f32,
            self.morph,
            self.rgb[0],
            self.rgb[1],
            self.rgb[2],
            self.backgrounds[0] as f32,
            self.backgrounds[1] as f32,
            self.fade,
            second.x,
            second.y,
            second.radius,
            second.shape as f32,
            second.rgb[0],
            second.rgb[1],
            second.rgb[2],
            second.opacity,
        ]
    }
}

impl Mix {
    /// One scene alone.
    pub fn of(scene: Scene) -> Self {
        Self { from: scene, to: scene, amount: 0.0 }
    }

    /// What moves the object: half-way, the new scene's motion takes over.
    pub fn motion(&self) -> Motion {
        if self.amount < 0.5 { self.from.motion } else { self.to.motion }
    }

    fn frame(&self, state: &State) -> Frame {
        let (from, to, amount) = (&self.from, &self.to, self.amount);
        let between = |a: f32, b: f32| a + (b - a) * amount;
        let (a, b) = (from.colour.rgb(), to.colour.rgb());
        Frame {
            x: state.x,
            y: state.y,
            angle: state.angle,
            radius: between(from.size.radius(), to.size.radius()) * state.scale,
            shapes: [from.shape.index(), to.shape.index()],
            morph: amount,
            rgb: std::array::from_fn(|i| between(a[i], b[i])),
            backgrounds: [from.background.index(), to.background.index()],
            fade: amount,
            second: self.second(),
        }
    }

    /// A second object that only one of the scenes has fades; one that both have stays.
    fn second(&self) -> SecondObject {
        let (chosen, opacity) = if self.from.companion == self.to.companion {
            (self.from.companion, 1.0)
        } else if self.amount < 0.5 {
            (self.from.companion, 1.0 - 2.0 * self.amount)
        } else {
            (self.to.companion, 2.0 * self.amount - 1.0)
        };
        match chosen {
            None => SecondObject { x: 0.0, y: 0.0, radius: 1.0, shape: 0, rgb: [0.0; 3], opacity: 0.0 },
            Some(companion) => {
                let (x, y) = companion.corner.position();
                let (shape, rgb) = (companion.shape.index(), companion.colour.rgb());
                SecondObject { x, y, radius: COMPANION_RADIUS, shape, rgb, opacity }
            }
        }
    }

    /// The next `count` frames; the first of them is one step after `state`, where `state` then is the last.
    pub fn play(&self, state: &mut State, count: usize) -> Vec<Frame> {
        let motion = self.motion();
        (0..count)
            .map(|_| {
                state.step(motion);
                self.frame(state)
            })
            .collect()
    }

    /// The frame of `state` itself.
    pub fn show(&self, state: &State) -> Frame {
        self.frame(state)
    }
}
