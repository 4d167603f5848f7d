//! Rotary position embedding over frame, row and column.
//!
//! Elements `(2j, 2j + 1)` of a head are one complex number. Of its `c = d/2` pairs the first `c - 2*(c/3)` turn with the
//! frame index, the next `c/3` with the row, the last `c/3` with the column; on an axis with `n` pairs, pair `j` turns by
//! `position * 10000^(-j/n)`. Angles are computed in f64, the rotation itself runs in f32.

use tch::{Device, Kind, TchError, Tensor};

/// Rotations that are kept for reuse: a Krea stream uses two start frames, a rolling one a new one each chunk.
pub(crate) const KEPT_ROTATIONS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grid {
    start_frame: i64,
    frames: i64,
    rows: i64,
    columns: i64,
}

/// Makes and keeps the rotations of token grids for one head width.
#[derive(Debug)]
pub struct Rope {
    pairs: usize,
    device: Device,
    kept: Vec<(Grid, Tensor)>,
}

impl Rope {
    pub fn new(head_dim: i64, device: Device) -> Self {
        Self { pairs: usize::try_from(head_dim / 2).unwrap_or(0), device, kept: Vec::new() }
    }

    /// Rotations `[N, 1, d/2]`, complex f32, of `frames * rows * columns` tokens (column fastest) whose first frame has
    /// index `start_frame`. Rows and columns start at 0.
    ///
    /// # Errors
    /// The device has no memory for them.
    pub fn rotations(
        &mut self,
        start_frame: i64,
        frames: i64,
        rows: i64,
        columns: i64,
    ) -> Result<Tensor, TchError> {
        let grid = Grid { start_frame, frames, rows, columns };
        if let Some((_, kept)) = self.kept.iter().find(|(g, _)| *g == grid) {
            return Ok(kept.shallow_clone());
        }
        let made = self.make(grid)?;
        if self.kept.len() == KEPT_ROTATIONS {
            drop(self.kept.remove(0));
        }
        self.kept.push((grid, made.shallow_clone()));
        Ok(made)
    }

    /// Keeps none any more.
    pub(crate) fn forget(&mut self) {
        self.kept.clear();
    }

    fn make(&self, grid: Grid) -> Result<Tensor, TchError> {
        let spatial = self.pairs / 3;
        let temporal = self.pairs - 2 * spatial;
        let by_frame = axis(grid.start_frame..grid.start_frame + grid.frames, temporal);
        let by_row = axis(0..grid.rows, spatial);
        let by_column = axis(0..grid.columns, spatial);
        // Only the three axes travel to the device; their product, thousands of times as large, is made there.
        let (frames, rows, columns) = (grid.frames, grid.rows, grid.columns);
        let placed = |values: &[f32], view: [i64; 5]| -> Result<Tensor, TchError> {
            let on_device = Tensor::f_from_slice(values)?.f_view(view)?.f_to_device(self.device)?;
            on_device.f_expand([frames, rows, columns, view[3], 2], false)
        };
        let (temporal, spatial) = (temporal as i64, spatial as i64);
        let axes = [
            placed(&by_frame, [frames, 1, 1, temporal, 2])?,
            placed(&by_row, [1, rows, 1, spatial, 2])?,
            placed(&by_column, [1, 1, columns, spatial, 2])?,
        ];
        let table = Tensor::f_cat(&axes, 3)?;
        table.f_view([frames * rows * columns, 1, self.pairs as i64, 2])?.f_view_as_complex()
    }
}

/// Cosine and sine of every pair's angle, interleaved, position after position of one axis.
fn axis(positions: std::ops::Range<i64>, pairs: usize) -> Vec<f32> {
    let turn = move |position: i64, j: usize| {
        let angle = position as f64 * 10_000_f64.powf(-(j as f64) / pairs as f64);
        [angle.cos() as f32, angle.sin() as f32]
    };
    positions.flat_map(|position| (0..pairs).flat_map(move |j| turn(position, j))).collect()
}

/// Turns `x` `[1, N, H, d]` by `rotations` `[N, 1, d/2]`; the result has the dtype of `x`.
///
/// # Errors
/// The shapes do not fit.
pub fn rotate(x: &Tensor, rotations: &Tensor) -> Result<Tensor, TchError> {
    let size = x.size();
    let [batch, tokens, heads, width] = size[..] else {
        return Err(TchError::Shape(format!("rope: expected [1, N, H, d], got {size:?}")));
    };
    let pairs =
        x.f_to_kind(Kind::Float)?.f_reshape([batch, tokens, heads, width / 2, 2])?.f_view_as_complex()?;
    let turned = pairs.f_mul(rotations)?.f_view_as_real()?;
    turned.f_view([batch, tokens, heads, width])?.f_to_kind(x.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_zero_does_not_turn_and_pairs_split_by_axis() {
        let mut rope = Rope::new(24, Device::Cpu);
        let rotations = rope.rotations(0, 2, 2, 2).unwrap().view_as_real();
        let angle = |token: i64, pair: i64| {
            let at = |part| rotations.double_value(&[token, 0, pair, part]);
            at(1).atan2(at(0))
        };
        for pair in 0..12 {
            assert_eq!(angle(0, pair), 0.0);
        }
        // Token 1 is the next column, 2 the next row, 4 the next frame; each turns the first pair of its axis by 1.
        for (token, first) in [(1, 8), (2, 4), (4, 0)] {
            assert!((angle(token, first) - 1.0).abs() < 1e-6);
            let turned = (0..12).filter(|pair| angle(token, *pair) != 0.0).collect::<Vec<_>>();
            assert_eq!(turned, (first..first + 4).collect::<Vec<_>>());
        }
    }

    #[test]
    fn start_frame_shifts_the_frame_axis_and_kept_tables_are_bounded() {
        let mut rope = Rope::new(24, Device::Cpu);
        let late = rope.rotations(3, 1, 2, 2).unwrap();
        let long = rope.rotations(0, 4, 2, 2).unwrap();
        assert!(late.equal(&long.narrow(0, 12, 4)));
        for start in 0..10 {
            let _ = rope.rotations(start, 1, 2, 2).unwrap();
        }
        assert_eq!(rope.kept.len(), KEPT_ROTATIONS);
    }
}
