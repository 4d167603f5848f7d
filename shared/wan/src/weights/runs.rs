//! Where a slice of a tensor lies in its values.

/// A slice of a row-major tensor: stretches of equal length at equal distances, counted in elements or in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Runs {
    pub(super) count: usize,
    /// From the start of one to the start of the next.
    pub(super) stride: usize,
    /// Of the first.
    pub(super) offset: usize,
    pub(super) length: usize,
}

impl Runs {
    /// `[start, start + len)` of dimension `dim`, in elements.
    pub(super) fn of(shape: &[i64], dim: usize, start: i64, len: i64) -> Self {
        let product = |sizes: &[i64]| sizes.iter().product::<i64>();
        let inner = product(&shape[dim + 1..]);
        let as_index = |value: i64| usize::try_from(value).unwrap_or(0);
        Self {
            count: as_index(product(&shape[..dim])),
            stride: as_index(shape[dim] * inner),
            offset: as_index(start * inner),
            length: as_index(len * inner),
        }
    }

    /// All of `length` elements.
    pub(super) fn whole(length: usize) -> Self {
        Self { count: 1, stride: length, offset: 0, length }
    }

    /// The same in bytes, for elements of `size` bytes.
    pub(super) fn in_bytes(self, size: usize) -> Self {
        let Self { count, stride, offset, length } = self;
        Self { count, stride: stride * size, offset: offset * size, length: length * size }
    }

    /// What the slice holds.
    pub(super) fn total(self) -> usize {
        self.count * self.length
    }

    /// Copies out of `values` what the slice holds from its `from`th byte on, as much as `out` takes.
    pub(super) fn gather(self, values: &[u8], mut from: usize, mut out: &mut [u8]) {
        while !out.is_empty() {
            let (run, within) = (from / self.length, from % self.length);
            let (part, rest) = out.split_at_mut(out.len().min(self.length - within));
            let start = self.offset + run * self.stride + within;
            part.copy_from_slice(&values[start..start + part.len()]);
            from += part.len();
            out = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gathered_is_the_slice_wherever_it_is_begun() {
        let values: Vec<u8> = (0..4 * 6 * 2).collect();
        for (dim, start, len) in [(0, 1, 2), (1, 2, 3), (2, 1, 1), (1, 0, 6)] {
            let runs = Runs::of(&[4, 6, 2], dim, start, len);
            let inside = |index: &usize| {
                let place = [index / 12, index / 2 % 6, index % 2][dim] as i64;
                (start..start + len).contains(&place)
            };
            let expected: Vec<u8> = (0..values.len()).filter(inside).map(|i| values[i]).collect();
            assert_eq!(runs.total(), expected.len());
            for from in 0..expected.len() {
                let mut out = vec![0; (expected.len() - from).min(5)];
                runs.gather(&values, from, &mut out);
                assert_eq!(out, expected[from..from + out.len()], "{runs:?} from {from}");
            }
        }
    }
}
