//! Parameters made from a seed: no download, equal on every machine.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use super::{TensorSource, WeightsError, check_range, runs};

/// Every element is a function of (seed, name, index, fan-in) alone, in integer and correctly rounded arithmetic only,
/// so that it does not depend on a maths library, on the order of loading, or on how a tensor is sharded.
///
/// Values are f32: approximately normal (sum of four uniforms), matrices with deviation `1/sqrt(fan_in)`, norm weights
/// around 1, biases and modulations small but not zero.
#[derive(Clone, Debug)]
pub struct SyntheticSource {
    seed: u64,
    fingerprint: String,
}

impl SyntheticSource {
    /// The parameters of this seed.
    pub fn new(seed: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"kinemesh synthetic weights 1");
        hash.update(seed.to_le_bytes());
        Self { seed, fingerprint: hex::encode(hash.finalize()) }
    }

    fn stream(&self, name: &str) -> ChaCha8Rng {
        let mut hash = Sha256::new();
        hash.update(self.seed.to_le_bytes());
        hash.update(name.as_bytes());
        ChaCha8Rng::from_seed(hash.finalize().into())
    }

    /// Fills one contiguous run of elements starting at flat index `first`.
    fn fill(stream: &mut ChaCha8Rng, first: usize, law: Law, out: &mut Vec<f32>, len: usize) {
        // Two 32-bit words of the stream for each element.
        stream.set_word_pos(first as u128 * 2);
        out.extend((0..len).map(|_| law.value(stream.next_u64())));
    }
}

/// Distribution of one tensor's elements: `mean + deviation * n`.
#[derive(Clone, Copy)]
struct Law {
    mean: f64,
    deviation: f64,
}

impl Law {
    fn of(name: &str, shape: &[i64]) -> Self {
        let fan_in = shape.iter().skip(1).product::<i64>().max(1) as f64;
        let last = name.rsplit('.').next().unwrap_or(name);
        let law = |mean, deviation| Self { mean, deviation };
        match last {
            "gamma" => law(1.0, 0.1),
            "bias" => law(0.0, 0.05),
            "modulation" => law(0.0, 0.2),
            "weight" if shape.len() == 1 => law(1.0, 0.1),
            "weight" if name.contains("token_embedding") => law(0.0, 1.0),
            "weight" if name.contains("pos_embedding") => law(0.0, 0.5),
            _ => law(0.0, 1.0 / fan_in.sqrt()),
        }
    }

    /// Four 16-bit uniforms added up, centred and scaled to deviation 1, then to this law.
    fn value(self, bits: u64) -> f32 {
        const SQRT_3: f64 = 1.732_050_807_568_877_2;
        let sum: u32 = (0..4).map(|i| u32::from((bits >> (16 * i)) as u16)).sum();
        let normal = (f64::from(sum) - 131_070.0) / 65_536.0 * SQRT_3;
        (self.mean + self.deviation * normal) as f32
    }
}

impl TensorSource for SyntheticSource {
    fn get(&self, name: &str, shape: &[i64]) -> Result<Tensor, WeightsError> {
        match shape.first() {
            Some(size) => self.narrow(name, shape, 0, 0, *size),
            None => self.narrow(name, &[1], 0, 0, 1).map(|t| t.squeeze()),
        }
    }

    fn narrow(
        &self,
        name: &str,
        shape: &[i64],
        dim: usize,
        start: i64,
        len: i64,
    ) -> Result<Tensor, WeightsError> {
        check_range(name, shape, dim, start, len)?;
        let law = Law::of(name, shape);
        let mut stream = self.stream(name);
        let (count, stride, offset, run) = runs(shape, dim, start, len);
        let mut values = Vec::with_capacity(count * run);
        for i in 0..count {
            Self::fill(&mut stream, i * stride + offset, law, &mut values, run);
        }
        let mut sliced = shape.to_vec();
        sliced[dim] = len;
        let tensor = Tensor::f_from_slice(&values).and_then(|t| t.f_view(sliced.as_slice()));
        let tensor = tensor.and_then(|t| t.f_to_kind(Kind::Float));
        tensor.map_err(|e| WeightsError::Torch { name: name.to_owned(), what: e.to_string() })
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_equals_the_same_slice_of_the_whole() {
        let source = SyntheticSource::new(7);
        let shape = [6, 10, 3];
        let whole = source.get("a.weight", &shape).unwrap();
        for (dim, start, len) in [(0, 2, 3), (1, 5, 5), (2, 1, 1), (1, 0, 10)] {
            let part = source.narrow("a.weight", &shape, dim, start, len).unwrap();
            assert!(part.equal(&whole.narrow(dim as i64, start, len)), "dim {dim} start {start} len {len}");
        }
    }

    #[test]
    fn values_are_the_same_on_every_machine() {
        let tensor = SyntheticSource::new(1).get("blocks.0.ffn.0.weight", &[4, 16]).unwrap();
        let mut bytes = vec![0_u8; 4 * 64];
        tensor.copy_data_u8(&mut bytes, 64);
        let digest = hex::encode(Sha256::digest(&bytes));
        assert_eq!(&digest[..16], "f69b5898f40b9b87");
    }

    #[test]
    fn names_and_seeds_give_different_values_of_unit_scale() {
        let get = |seed, name| SyntheticSource::new(seed).get(name, &[64, 256]).unwrap();
        let (a, b, c) = (get(1, "a.weight"), get(1, "b.weight"), get(2, "a.weight"));
        assert!(!a.equal(&b) && !a.equal(&c));
        let deviation = a.std(true).double_value(&[]);
        assert!((deviation - 1.0 / 16.0).abs() < 2e-3, "deviation {deviation}");
        assert!(a.mean(Kind::Float).double_value(&[]).abs() < 2e-3);
    }

    #[test]
    fn a_slice_outside_the_shape_is_refused() {
        let error = SyntheticSource::new(1).narrow("a.weight", &[4, 4], 1, 3, 2).unwrap_err().to_string();
        assert!(error.contains("a.weight") && error.contains("[4, 4]"), "{error}");
    }
}
