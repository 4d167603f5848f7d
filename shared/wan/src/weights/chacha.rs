//! The ChaCha8 stream of a seed in tensor operations, so that it can be computed where its values are needed: the same
//! words as `rand_chacha::ChaCha8Rng` gives, by the million and on any device.

use tch::{Device, Kind, TchError, Tensor};

const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];
const DOUBLE_ROUNDS: usize = 4;
/// Elements of 64 bits in a block of 64 bytes.
pub(super) const PER_BLOCK: i64 = 8;
const COLUMNS: [[usize; 4]; 4] = [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]];
const DIAGONALS: [[usize; 4]; 4] = [[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]];

/// For each 64-bit element of blocks `[first, first + count)` of the stream of `seed`: the sum of its four 16-bit parts,
/// int32 `[count * 8]`.
pub(super) fn sums_of_parts(
    seed: [u8; 32],
    first: i64,
    count: i64,
    device: Device,
) -> Result<Tensor, TchError> {
    let words = words(seed, first, count, device)?;
    let parts = |word: &Tensor| -> Result<Tensor, TchError> {
        let low = word.f_bitwise_and(0xffff_i64)?;
        low.f_add(&shifted_right(word, 16)?)
    };
    let elements = words.chunks(2).map(|pair| parts(&pair[0])?.f_add_(&parts(&pair[1])?));
    Tensor::f_stack(&elements.collect::<Result<Vec<_>, _>>()?, 1)?.f_flatten(0, -1)
}

/// The sixteen words of each block, int32 `[count]` each.
fn words(seed: [u8; 32], first: i64, count: i64, device: Device) -> Result<Vec<Tensor>, TchError> {
    let constant = |word: u32| {
        // The bits count, not the number.
        Tensor::f_full([count], i64::from(word.cast_signed()), (Kind::Int, device))
    };
    let key = seed.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    let mut start = CONSTANTS.into_iter().chain(key).map(constant).collect::<Result<Vec<_>, _>>()?;
    // A 64-bit counter, of which tensors that fit into a memory never fill the lower half.
    start.push(Tensor::f_arange_start(first, first + count, (Kind::Int, device))?);
    start.extend([constant(0)?, constant(0)?, constant(0)?]);
    let mut state = start.iter().map(Tensor::f_detach_copy).collect::<Result<Vec<_>, _>>()?;
    for _ in 0..DOUBLE_ROUNDS {
        for quarter in COLUMNS.into_iter().chain(DIAGONALS) {
            quarter_round(&mut state, quarter)?;
        }
    }
    for (word, start) in state.iter_mut().zip(&start) {
        let _ = word.f_add_(start)?;
    }
    Ok(state)
}

fn quarter_round(state: &mut [Tensor], [a, b, c, d]: [usize; 4]) -> Result<(), TchError> {
    for (sum, term, turned, by) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
        let term = state[term].shallow_clone();
        let sum = state[sum].f_add_(&term)?;
        let mixed = state[turned].f_bitwise_xor_tensor(&sum)?;
        state[turned] = mixed
            .f_bitwise_left_shift_tensor_scalar(by)?
            .f_bitwise_or_tensor(&shifted_right(&mixed, 32 - by)?)?;
    }
    Ok(())
}

/// A logical shift: the tensors' own keeps the sign.
fn shifted_right(word: &Tensor, by: i64) -> Result<Tensor, TchError> {
    word.f_bitwise_right_shift_tensor_scalar(by)?.f_bitwise_and((1_i64 << (32 - by)) - 1)
}

#[cfg(test)]
mod tests {
    use rand::{RngCore, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn the_words_are_those_of_the_generator() {
        let seed = std::array::from_fn(|i| (i * 37) as u8 ^ 0x5a);
        let mut expected = ChaCha8Rng::from_seed(seed);
        expected.set_word_pos(5 * 16);
        let words = words(seed, 5, 3, Device::Cpu).unwrap();
        for block in 0..3 {
            for word in &words {
                assert_eq!(word.int64_value(&[block]), i64::from(expected.next_u32().cast_signed()));
            }
        }
    }
}
