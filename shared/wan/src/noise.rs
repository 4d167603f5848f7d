//! Gaussian noise of a chunk, a function of (seed, first frame) alone: it depends neither on the world size nor on what
//! was drawn before.
//!
//! One CPU generator seeded with `seed + current_start_frame` draws the initial noise and then each re-noising tensor, in
//! this order. libtorch's generator gives the numbers of the reference; only its global generator can be reached from
//! here, so a lock keeps a chunk's draws together. Nothing else in this crate draws random numbers.

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, TchError, Tensor};

static GLOBAL_GENERATOR: Mutex<()> = Mutex::new(());

/// All noise of one chunk, f32 on the CPU.
#[derive(Debug)]
pub struct BlockNoise {
    /// `[1, F, C, H, W]`, what the first denoising step starts from.
    pub initial: Tensor,
    /// `[F, C, H, W]` each; `renoise[s]` takes the result of step `s` to step `s + 1`.
    pub renoise: Vec<Tensor>,
}

impl BlockNoise {
    /// Draws the noise of the chunk whose first frame is `current_start_frame`, for `steps` denoising steps.
    /// `shape` is `[F, C, H, W]`.
    ///
    /// # Errors
    /// libtorch refuses the shape.
    pub fn draw(
        seed: u64,
        current_start_frame: i64,
        shape: [i64; 4],
        steps: usize,
    ) -> Result<Self, TchError> {
        let [frames, channels, height, width] = shape;
        let options = (Kind::Float, Device::Cpu);
        let block_seed = seed.wrapping_add_signed(current_start_frame);
        let guard = GLOBAL_GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        // The generator takes the 64 bits as they are; the sign is only the binding's.
        tch::manual_seed(block_seed as i64);
        let initial = Tensor::f_randn([1, frames, channels, height, width], options)?;
        let renoise = (1..steps).map(|_| Tensor::f_randn(shape, options)).collect::<Result<_, _>>()?;
        drop(guard);
        Ok(Self { initial, renoise })
    }
}

/// The initial noise alone: `[1, F, C, H, W]`, f32 on the CPU.
///
/// # Errors
/// libtorch refuses the shape.
pub fn block_noise(
    seed: u64,
    current_start_frame: i64,
    frames: i64,
    channels: i64,
    height: i64,
    width: i64,
) -> Result<Tensor, TchError> {
    Ok(BlockNoise::draw(seed, current_start_frame, [frames, channels, height, width], 1)?.initial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_depends_on_seed_and_frame_only() {
        let draw = |seed, frame| block_noise(seed, frame, 3, 16, 4, 4).unwrap();
        let first = draw(42, 3);
        assert!(!first.equal(&draw(42, 0)));
        assert!(first.equal(&draw(42, 3)));
        assert!(first.equal(&draw(45, 0)));
    }

    #[test]
    fn more_steps_leave_the_earlier_draws_alone() {
        let draw = |steps| BlockNoise::draw(7, 0, [3, 16, 4, 4], steps).unwrap();
        let (two, four) = (draw(2), draw(4));
        assert!(two.initial.equal(&four.initial) && two.renoise[0].equal(&four.renoise[0]));
        assert_eq!((two.renoise.len(), four.renoise.len()), (1, 3));
    }

    #[test]
    fn threads_do_not_disturb_one_another() {
        let draw = |seed| BlockNoise::draw(seed, 0, [3, 16, 16, 16], 4).unwrap();
        let expected: Vec<_> = (0..4).map(draw).collect();
        let drawn: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || draw(seed))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (a, b) in expected.iter().zip(&drawn) {
            assert!(a.initial.equal(&b.initial) && a.renoise[2].equal(&b.renoise[2]));
        }
    }
}
