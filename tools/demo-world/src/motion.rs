//! How an object moves. What comes next depends only on what can be seen: so a model can go on from any context, also when
//! the prompt changes in mid-stream.

use std::f32::consts::TAU;

use rand::Rng;

use crate::SIDE;
use crate::scene::{Motion, Scene};

/// Pixels a frame of an object that crosses the picture.
pub const SPEED: f32 = 2.5;
/// Radians a frame of an object that circles.
pub const ORBIT: f32 = TAU / 60.0;
/// Radius of that circle, in pixels.
pub const ORBIT_RADIUS: f32 = 42.0;
/// Radians a frame of an object that spins.
pub const SPIN: f32 = TAU / 72.0;
/// Growth a frame.
pub const GROWTH: f32 = 1.018;
/// Where growing starts again, and from which size, relative to the object's own.
pub const GROWN: (f32, f32) = (1.5, 0.55);
/// Pixels a frame and frame.
const GRAVITY: f32 = 0.36;
/// Upward speed with which a bouncing object leaves the floor.
const JUMP: f32 = 7.6;
/// Height of a bouncing object's centre on the floor.
const FLOOR: f32 = SIDE as f32 - 34.0;
/// How far from the middle a clip starts at one standard deviation, in pixels.
pub const START_SPREAD: f32 = 20.0;

/// Where an object is. The picture is a torus: what leaves it on one side comes back on the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    pub x: f32,
    pub y: f32,
    /// Downward speed.
    vy: f32,
    /// Radians.
    pub angle: f32,
    /// Relative to the scene's size.
    pub scale: f32,
}

impl State {
    /// The start of a stream: near the middle, `spread` standard deviations off it.
    pub fn start(motion: Motion, spread: (f32, f32)) -> Self {
        let at = |offset: f32| SIDE as f32 / 2.0 + START_SPREAD * offset.clamp(-2.0, 2.0);
        let scale = if motion == Motion::Growing { 0.7 } else { 1.0 };
        Self { x: at(spread.0), y: at(spread.1), vy: 0.0, angle: 0.0, scale }
    }

    /// Anywhere, as after a long time of any motion.
    pub fn anywhere(scene: &Scene, rng: &mut impl Rng) -> Self {
        let side = SIDE as f32;
        let growing = scene.motion == Motion::Growing || rng.random_bool(0.1);
        let mut state = Self {
            x: rng.random_range(0.0..side),
            y: rng.random_range(0.0..side),
            vy: 0.0,
            angle: if rng.random_bool(0.5) { 0.0 } else { rng.random_range(0.0..TAU) },
            scale: if growing { rng.random_range(GROWN.1..GROWN.0) } else { 1.0 },
        };
        if matches!(scene.motion, Motion::Circling | Motion::Bouncing) && rng.random_bool(0.8) {
            // Long enough to be where these motions lead to.
            for _ in 0..rng.random_range(60..180) {
                state.step(scene.motion);
            }
        }
        state
    }

    /// One frame later.
    pub fn step(&mut self, motion: Motion) {
        let (x, y) = (self.x, self.y);
        match motion {
            Motion::Left => self.x -= SPEED,
            Motion::Right => self.x += SPEED,
            Motion::Up => self.y -= SPEED,
            Motion::Down => self.y += SPEED,
            Motion::Circling => self.orbit(),
            Motion::Bouncing => self.bounce(),
            Motion::Spinning => self.angle = (self.angle + SPIN).rem_euclid(TAU),
            Motion::Growing => {
                self.scale *= GROWTH;
                if self.scale > GROWN.0 {
                    self.scale = GROWN.1;
                }
            }
            Motion::Still => {}
        }
        if motion != Motion::Growing {
            self.scale += 0.15 * (1.0 - self.scale);
        }
        if motion != Motion::Bouncing {
            self.vy = self.y - y;
        }
        let side = SIDE as f32;
        debug_assert!((self.x - x).abs() < side && (self.y - y).abs() < side);
        self.x = self.x.rem_euclid(side);
        self.y = self.y.rem_euclid(side);
    }

    /// Towards a circle around the middle and along it; in the middle, to the right.
    fn orbit(&mut self) {
        let middle = SIDE as f32 / 2.0;
        let (dx, dy) = (self.x - middle, self.y - middle);
        let off = (dx * dx + dy * dy) / (ORBIT_RADIUS * ORBIT_RADIUS);
        let outward = (0.07 * (1.0 - off)).max(-0.1);
        let kick = 1.5 * (-off * 8.0).exp();
        let (sin, cos) = ORBIT.sin_cos();
        self.x = middle + (cos * dx - sin * dy) * (1.0 + outward) + kick;
        self.y = middle + (sin * dx + cos * dy) * (1.0 + outward);
    }

    fn bounce(&mut self) {
        self.vy = (self.vy + GRAVITY).clamp(-JUMP, JUMP);
        self.y += self.vy;
        if self.y >= FLOOR && self.vy > 0.0 {
            self.y = FLOOR.min(self.y);
            self.vy = -JUMP;
        }
        // From below the floor it comes up first.
        if self.y > FLOOR {
            self.vy = -JUMP;
        }
        self.y = self.y.max(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(motion: Motion, start: (f32, f32), frames: usize) -> Vec<State> {
        let mut state = State { x: start.0, y: start.1, ..State::start(motion, (0.0, 0.0)) };
        (0..frames)
            .map(|_| {
                state.step(motion);
                state
            })
            .collect()
    }

    #[test]
    fn a_bouncing_object_comes_back_to_the_floor_for_ever() {
        for start in [10.0, 80.0, 125.0, 150.0] {
            let late = &path(Motion::Bouncing, (50.0, start), 600)[400..];
            let (top, bottom) = late.iter().fold((999.0_f32, 0.0_f32), |(t, b), s| (t.min(s.y), b.max(s.y)));
            assert!((FLOOR - 8.0..=FLOOR).contains(&bottom) && (30.0..60.0).contains(&top), "{top} {bottom}");
        }
    }

    #[test]
    fn circling_ends_on_the_circle_from_anywhere() {
        for start in [(80.0, 80.0), (81.0, 79.0), (5.0, 150.0), (120.0, 80.0)] {
            for state in &path(Motion::Circling, start, 400)[200..] {
                let radius = (state.x - 80.0).hypot(state.y - 80.0);
                assert!((radius - ORBIT_RADIUS).abs() < 4.0, "{start:?}: {radius}");
            }
        }
    }

    #[test]
    fn all_motions_stay_in_the_picture() {
        for motion in Motion::ALL {
            for state in path(*motion, (80.0, 80.0), 1000) {
                let side = SIDE as f32;
                assert!((0.0..side).contains(&state.x) && (0.0..side).contains(&state.y), "{motion:?}");
                assert!((0.5..1.6).contains(&state.scale));
            }
        }
    }
}
