//! Parameters made from a seed: no download, equal on every machine.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, TchError, Tensor};

use super::runs::Runs;
use super::{TensorSource, WeightsError, chacha, check_range};

/// Elements that are made at a time on a device: their stream takes about 300 MB meanwhile.
const BATCH: usize = 1 << 24;

/// Every element is a function of (seed, name, index, fan-in) alone, in integer and correctly rounded arithmetic only,
/// so that it does not depend on a maths library, on the order of loading, or on how a tensor is sharded.
///
/// Values are f32: approximately normal (sum of four uniforms), matrices with deviation `1/sqrt(fan_in)`, norm weights
/// around 1, biases and modulations small but not zero. They are made on the device they are for, bit for bit the same
/// on every one.
#[derive(Clone, Debug)]
pub struct SyntheticSource {
    seed: u64,
    device: Device,
    fingerprint: String,
}

impl SyntheticSource {
    /// The parameters of this seed, made on the CPU.
    pub fn new(seed: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"kinemesh synthetic weights 1");
        hash.update(seed.to_le_bytes());
        Self { seed, device: Device::Cpu, fingerprint: hex::encode(hash.finalize()) }
    }

    /// The same parameters, made on `device`.
    #[must_use]
    pub fn on(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// What the stream of one tensor starts from.
    fn key(&self, name: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.seed.to_le_bytes());
        hash.update(name.as_bytes());
        hash.finalize().into()
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
        let sum: u32 = (0..4).map(|i| u32::from((bits >> (16 * i)) as u16)).sum();
        let normal = (f64::from(sum) - 131_070.0) / 65_536.0 * SQRT_3;
        (self.mean + self.deviation * normal) as f32
    }

    /// [`Self::value`] of elements whose parts are added up already: the same operations in the same order.
    fn values(self, sums: &Tensor) -> Result<Tensor, TchError> {
        let mut values = sums.f_to_kind(Kind::Double)?.f_sub_scalar(131_070.0)?.f_div_scalar(65_536.0)?;
        let mut values = values.f_mul_scalar_(SQRT_3)?.f_mul_scalar_(self.deviation)?;
        values.f_add_scalar_(self.mean)?.f_to_kind(Kind::Float)
    }
}

const SQRT_3: f64 = 1.732_050_807_568_877_2;

/// The slice of a tensor, f32, made on `device` with tensor operations: whole rows, of which the slice stays.
fn on_device(
    key: [u8; 32],
    law: Law,
    Runs { count, stride, offset, length: run }: Runs,
    device: Device,
) -> Result<Tensor, TchError> {
    // One long row is cut into pieces, short rows are taken together.
    let (rows_at_once, piece) = if count == 1 { (1, BATCH) } else { ((BATCH / stride).max(1), run) };
    let out = Tensor::f_empty([count as i64, run as i64], (Kind::Float, device))?;
    for row in (0..count).step_by(rows_at_once) {
        let rows = rows_at_once.min(count - row);
        for start in (0..run).step_by(piece.max(1)) {
            let len = piece.min(run - start);
            let first = row * stride + offset + start;
            let last = first + (rows - 1) * stride + len;
            let flat = elements(key, law, first as i64, last as i64, device)?;
            let made = flat.f_as_strided([rows as i64, len as i64], [stride as i64, 1], None::<i64>)?;
            let mut part = out.f_narrow(0, row as i64, rows as i64)?.f_narrow(1, start as i64, len as i64)?;
            part.f_copy_(&made)?;
        }
    }
    Ok(out)
}

/// Elements `[first, last)` of a tensor.
fn elements(key: [u8; 32], law: Law, first: i64, last: i64, device: Device) -> Result<Tensor, TchError> {
    let from = first / chacha::PER_BLOCK;
    let blocks = (last + chacha::PER_BLOCK - 1) / chacha::PER_BLOCK - from;
    let sums = chacha::sums_of_parts(key, from, blocks, device)?;
    law.values(&sums.f_narrow(0, first - from * chacha::PER_BLOCK, last - first)?)?.f_contiguous()
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
        let (law, key) = (Law::of(name, shape), self.key(name));
        let slice @ Runs { count, stride, offset, length: run } = Runs::of(shape, dim, start, len);
        let mut sliced = shape.to_vec();
        sliced[dim] = len;
        let values = if self.device == Device::Cpu {
            // Four times as fast there as tensor operations.
            let mut stream = ChaCha8Rng::from_seed(key);
            let mut values = Vec::with_capacity(count * run);
            for i in 0..count {
                Self::fill(&mut stream, i * stride + offset, law, &mut values, run);
            }
            Tensor::f_from_slice(&values)
        } else {
            on_device(key, law, slice, self.device)
        };
        let tensor = values.and_then(|values| values.f_view(sliced.as_slice()));
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
    fn what_is_made_with_tensor_operations_is_the_same_bit_for_bit() {
        let source = SyntheticSource::new(9);
        for (name, shape) in [("a.weight", vec![37, 5, 3]), ("a.gamma", vec![19]), ("a.bias", vec![1])] {
            let (law, key) = (Law::of(name, &shape), source.key(name));
            for dim in 0..shape.len() {
                for (start, len) in [(0, shape[dim]), (shape[dim] / 2, shape[dim] - shape[dim] / 2)] {
                    let expected = source.narrow(name, &shape, dim, start, len).unwrap();
                    let made = on_device(key, law, Runs::of(&shape, dim, start, len), Device::Cpu).unwrap();
                    assert!(
                        made.flatten(0, -1).equal(&expected.flatten(0, -1)),
                        "{name} {dim} {start} {len}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_tensor_of_several_batches_has_no_seams() {
        let source = SyntheticSource::new(9);
        let (name, shape) = ("long.weight", [3, 6_000_001]);
        let (law, key) = (Law::of(name, &shape), source.key(name));
        let made = on_device(key, law, Runs::of(&shape, 0, 0, 3), Device::Cpu).unwrap();
        let whole = source.get(name, &shape).unwrap();
        assert!(made.view([3, -1]).equal(&whole));
        // A column slice whose rows are taken two at a time.
        let slice = on_device(key, law, Runs::of(&shape, 1, 5_999_990, 11), Device::Cpu).unwrap();
        assert!(slice.equal(&whole.narrow(1, 5_999_990, 11)));
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
