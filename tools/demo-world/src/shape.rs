//! Outlines as signed distances, in units of the object's radius.

use std::f32::consts::TAU;

use crate::scene::Shape;

/// Distance from `(x, y)` to the outline of an object of radius 1 at the origin: negative inside. `y` points down.
pub fn distance(shape: Shape, x: f32, y: f32) -> f32 {
    match shape {
        Shape::Circle => x.hypot(y) - 0.95,
        Shape::Ring => (x.hypot(y) - 0.74).abs() - 0.26,
        Shape::Square => rectangle(x, y, 0.82, 0.82),
        Shape::Cross => rectangle(x, y, 1.0, 0.32).min(rectangle(x, y, 0.32, 1.0)),
        Shape::Triangle => polygon(x, y, 3, &[1.12]),
        Shape::Star => polygon(x, y, 10, &[1.15, 0.5]),
    }
}

/// Angle after which a turned shape looks as before; `None` for round ones.
pub fn symmetry(shape: Shape) -> Option<f32> {
    match shape {
        Shape::Circle | Shape::Ring => None,
        Shape::Square | Shape::Cross => Some(TAU / 4.0),
        Shape::Triangle => Some(TAU / 3.0),
        Shape::Star => Some(TAU / 5.0),
    }
}

fn rectangle(x: f32, y: f32, half_width: f32, half_height: f32) -> f32 {
    let (dx, dy) = (x.abs() - half_width, y.abs() - half_height);
    dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0)
}

/// Corners at even angles from straight up, at radii that repeat.
fn polygon(x: f32, y: f32, corners: usize, radii: &[f32]) -> f32 {
    let corner = |i: usize| {
        let (sin, cos) = (TAU * i as f32 / corners as f32).sin_cos();
        let radius = radii[i % radii.len()];
        (radius * sin, -radius * cos)
    };
    let (mut nearest, mut inside) = (f32::INFINITY, false);
    for i in 0..corners {
        let ((ax, ay), (bx, by)) = (corner(i), corner((i + 1) % corners));
        let (ex, ey, px, py) = (bx - ax, by - ay, x - ax, y - ay);
        let along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0.0, 1.0);
        nearest = nearest.min((px - along * ex).hypot(py - along * ey));
        // A ray to the right crosses this side.
        if (ay > y) != (by > y) && x < ax + (y - ay) / ey * ex {
            inside = !inside;
        }
    }
    if inside { -nearest } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_inside_but_of_a_ring_and_far_away_is_outside() {
        for shape in Shape::ALL {
            assert_eq!(distance(*shape, 0.0, 0.0) < 0.0, *shape != Shape::Ring, "{shape:?}");
            assert!(distance(*shape, 1.3, 1.3) > 0.2, "{shape:?}");
        }
    }

    #[test]
    fn a_turn_by_the_symmetry_changes_nothing() {
        for shape in Shape::ALL {
            let Some(turn) = symmetry(*shape) else { continue };
            let (sin, cos) = turn.sin_cos();
            for (x, y) in [(0.3_f32, 0.8_f32), (-0.9, 0.1), (0.5, -0.6)] {
                let turned = distance(*shape, cos * x - sin * y, sin * x + cos * y);
                assert!((turned - distance(*shape, x, y)).abs() < 1e-4, "{shape:?}");
            }
        }
    }
}
