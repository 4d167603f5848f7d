use std::slice;

use crate::ReduceOp;
use crate::tensor::Dtype;

/// Elements combined at a time, so that the running result stays in the first-level cache.
const BLOCK: usize = 1024;

/// `out[i]` = the reduction of `sources[r][i]` over `r`, in the order of `sources`: the same bits wherever it runs.
/// bf16 accumulates in f32 and rounds once (to nearest, ties to even); i64 sums wrap; min and max of a NaN are NaN.
///
/// # Safety
/// `out` and every source hold `numel` aligned elements of `dtype`; `out` overlaps none of the sources; nobody writes
/// any of them meanwhile.
pub(super) unsafe fn reduce(out: *mut u8, sources: &[*const u8], numel: usize, dtype: Dtype, op: ReduceOp) {
    // SAFETY: the caller's.
    unsafe {
        match dtype {
            Dtype::F32 => with_op::<f32>(out, sources, numel, op),
            Dtype::F64 => with_op::<f64>(out, sources, numel, op),
            Dtype::Bf16 => with_op::<Bf16>(out, sources, numel, op),
            Dtype::I64 => with_op::<i64>(out, sources, numel, op),
        }
    }
}

unsafe fn with_op<E: Element>(out: *mut u8, sources: &[*const u8], numel: usize, op: ReduceOp) {
    // SAFETY: the caller's.
    unsafe {
        match op {
            ReduceOp::Sum => blocks::<E>(out, sources, numel, E::sum),
            ReduceOp::Min => blocks::<E>(out, sources, numel, E::min),
            ReduceOp::Max => blocks::<E>(out, sources, numel, E::max),
        }
    }
}

unsafe fn blocks<E: Element>(
    out: *mut u8,
    sources: &[*const u8],
    numel: usize,
    combine: impl Fn(E::Wide, E::Wide) -> E::Wide,
) {
    let Some((first, rest)) = sources.split_first() else { return };
    let mut wide = [E::Wide::default(); BLOCK];
    for start in (0..numel).step_by(BLOCK) {
        let len = BLOCK.min(numel - start);
        let wide = &mut wide[..len];
        // SAFETY: `start + len <= numel`, and the caller's.
        let block = |source: *const u8| unsafe { slice::from_raw_parts(source.cast::<E>().add(start), len) };
        for (w, x) in wide.iter_mut().zip(block(*first)) {
            *w = x.widen();
        }
        for source in rest {
            for (w, x) in wide.iter_mut().zip(block(*source)) {
                *w = combine(*w, x.widen());
            }
        }
        // SAFETY: as above; `out` overlaps no source.
        let out = unsafe { slice::from_raw_parts_mut(out.cast::<E>().add(start), len) };
        for (o, w) in out.iter_mut().zip(wide) {
            *o = E::narrow(*w);
        }
    }
}

trait Element: Copy {
    type Wide: Copy + Default;

    fn widen(self) -> Self::Wide;
    fn narrow(wide: Self::Wide) -> Self;
    fn sum(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    fn min(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    fn max(a: Self::Wide, b: Self::Wide) -> Self::Wide;
}

macro_rules! float {
    ($element:ty, $wide:ty, $widen:expr, $narrow:expr) => {
        impl Element for $element {
            type Wide = $wide;

            fn widen(self) -> $wide {
                $widen(self)
            }

            fn narrow(wide: $wide) -> Self {
                $narrow(wide)
            }

            fn sum(a: $wide, b: $wide) -> $wide {
                a + b
            }

            fn min(a: $wide, b: $wide) -> $wide {
                if a < b || a.is_nan() { a } else { b }
            }

            fn max(a: $wide, b: $wide) -> $wide {
                if a > b || a.is_nan() { a } else { b }
            }
        }
    };
}

float!(f32, f32, |x| x, |x| x);
float!(f64, f64, |x| x, |x| x);
float!(Bf16, f32, Bf16::to_f32, Bf16::from_f32);

impl Element for i64 {
    type Wide = Self;

    fn widen(self) -> Self {
        self
    }

    fn narrow(wide: Self) -> Self {
        wide
    }

    fn sum(a: Self, b: Self) -> Self {
        a.wrapping_add(b)
    }

    fn min(a: Self, b: Self) -> Self {
        Ord::min(a, b)
    }

    fn max(a: Self, b: Self) -> Self {
        Ord::max(a, b)
    }
}

/// The upper half of an f32.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Bf16(u16);

impl Bf16 {
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    fn from_f32(x: f32) -> Self {
        if x.is_nan() {
            return Self(0x7fc0);
        }
        let bits = x.to_bits();
        let ties_to_even = 0x7fff + ((bits >> 16) & 1);
        Self((bits.wrapping_add(ties_to_even) >> 16) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_torch_does() {
        use tch::{Kind, Tensor};
        let mut x: Vec<f32> =
            (0..100_000_u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761))).collect();
        x.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE]);
        x.retain(|x| !x.is_nan());
        let ours: Vec<f32> = x.iter().map(|x| Bf16::from_f32(*x).to_f32()).collect();
        let torch = Tensor::from_slice(&x).to_kind(Kind::BFloat16).to_kind(Kind::Float);
        assert_eq!(Vec::<f32>::try_from(torch).unwrap(), ours);
        assert!(Bf16::from_f32(f32::NAN).to_f32().is_nan());
    }

    #[test]
    fn a_nan_of_any_rank_stays() {
        for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
            assert!(<f32 as Element>::min(a, b).is_nan() && <f32 as Element>::max(a, b).is_nan());
        }
    }
}
