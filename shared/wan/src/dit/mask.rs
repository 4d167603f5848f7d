//! What is added to, or allowed in, the attention scores. Masks are the same in all layers of a pass.

use std::ops::Range;

use tch::{Device, Kind, TchError, Tensor};

/// What the scores of a pass get added, for the implementations that take it and those that can do better.
#[derive(Debug)]
pub enum Mask {
    /// Added to the scores (float) or telling which keys are seen (bool).
    Scores(Tensor),
    /// `ln_bias` is added to the scores of these keys, between others before and after them: `scores` says the same.
    Bias { keys: Range<i64>, ln_bias: f64, scores: Tensor },
}

impl Mask {
    /// `[.., queries, keys]`
    pub(super) fn scores(&self) -> &Tensor {
        match self {
            Self::Scores(scores) | Self::Bias { scores, .. } => scores,
        }
    }
}

/// Which keys of `keys` are past frames that the attention bias weakens: neither the first frame of the window nor the
/// current block. Empty when the window holds nothing else.
pub fn biased_keys(keys: i64, tokens_per_frame: i64, block_frames: i64) -> Range<i64> {
    let start = tokens_per_frame.min(keys);
    start..(keys - block_frames * tokens_per_frame).max(start)
}

/// [`Mask::Bias`] of `ln(bias)` for the biased keys, its scores `[1, 1, queries, keys]`. `None` when no key is biased. The
/// reference pads this path with zero keys that take part in the softmax; that is an artefact of its kernel and not done
/// here.
///
/// # Errors
/// The device has no memory for it.
pub(super) fn attention_bias(
    bias: f64,
    queries: i64,
    keys: i64,
    tokens_per_frame: i64,
    block_frames: i64,
    options: (Kind, Device),
) -> Result<Option<Mask>, TchError> {
    let biased = biased_keys(keys, tokens_per_frame, block_frames);
    #[expect(clippy::float_cmp, reason = "1 is the stated value for no bias, not the result of arithmetic")]
    if bias == 1.0 || biased.is_empty() {
        return Ok(None);
    }
    let row = Tensor::f_zeros([1, 1, 1, keys], options)?;
    let _ = row.f_narrow(3, biased.start, biased.end - biased.start)?.f_fill_(bias.ln())?;
    let scores = row.f_expand([1, 1, queries, keys], false)?;
    Ok(Some(Mask::Bias { keys: biased, ln_bias: bias.ln(), scores }))
}

/// `[tokens, tokens]` of booleans: query `i` may see key `j` iff the block of `j` is not after the block of `i`. `None`
/// when there is one block only, since it sees all.
///
/// # Errors
/// The device has no memory for it.
pub fn block_causal(tokens: i64, block_tokens: i64, device: Device) -> Result<Option<Tensor>, TchError> {
    if tokens <= block_tokens {
        return Ok(None);
    }
    let block = Tensor::f_arange(tokens, (Kind::Int64, device))?.f_floor_divide_scalar(block_tokens)?;
    Ok(Some(block.f_unsqueeze(0)?.f_le_tensor(&block.f_unsqueeze(1)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bias_spares_the_first_frame_and_the_current_block() {
        assert_eq!(biased_keys(96, 16, 3), 16..48);
        assert!(biased_keys(48, 16, 3).is_empty());
        assert!(biased_keys(8, 16, 3).is_empty());
    }

    #[test]
    fn no_mask_where_nothing_is_masked() {
        let options = (Kind::Float, Device::Cpu);
        assert!(attention_bias(1.0, 48, 96, 16, 3, options).unwrap().is_none());
        assert!(attention_bias(0.3, 48, 48, 16, 3, options).unwrap().is_none());
        assert!(block_causal(48, 48, Device::Cpu).unwrap().is_none());
    }

    #[test]
    fn a_later_block_sees_the_earlier_ones() {
        let mask = block_causal(4, 2, Device::Cpu).unwrap().unwrap();
        let sees = |i, j| mask.int64_value(&[i, j]) == 1;
        assert!(sees(0, 1) && sees(2, 0) && sees(3, 3) && !sees(1, 2));
    }
}
