//! Muon (K. Jordan and others, 2024, kellerjordan.github.io/posts/muon): the momentum of a hidden layer's matrix, made
//! orthogonal, is its update, so that all directions of the matrix learn at the same pace.
//!
//! Scaled as in arXiv 2502.16982, so that a rate for Adam fits.

use tch::{Device, Kind, Tensor};

use crate::parameters::Spec;
use crate::text::POSITIONS;

/// Of the quintic iteration that brings singular values near to 1, from its authors.
const QUINTIC: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
const ITERATIONS: usize = 5;

/// Matrices of one shape.
#[derive(Debug)]
struct Group {
    shape: [i64; 2],
    count: i64,
}

/// The hidden layers' matrices among the parameters.
#[derive(Debug)]
pub struct Matrices {
    groups: Vec<Group>,
    /// Where each element lies in the flat tensor, group after group: `[M]` int64.
    places: Tensor,
}

impl Matrices {
    /// Those of the blocks: what leads in and out of a network is left to Adam.
    pub fn of(specs: &[Spec], device: Device) -> Self {
        let mut found: Vec<([i64; 2], Vec<i64>)> = Vec::new();
        let mut offset = 0;
        for spec in specs {
            let hidden = spec.name.contains("blocks.") && spec.name.ends_with(".weight");
            let table = spec.name.contains(POSITIONS);
            if let &[rows, columns] = spec.shape.as_slice()
                && hidden
                && !table
            {
                let shape = [rows, columns];
                match found.iter_mut().find(|(known, _)| *known == shape) {
                    Some((_, offsets)) => offsets.push(offset),
                    None => found.push((shape, vec![offset])),
                }
            }
            offset += spec.len();
        }
        let runs = found.iter().flat_map(|(shape, offsets)| {
            offsets.iter().map(move |offset| {
                Tensor::arange_start(*offset, offset + shape[0] * shape[1], (Kind::Int64, device))
            })
        });
        let runs: Vec<Tensor> = runs.collect();
        let places =
            if runs.is_empty() { Tensor::zeros([0], (Kind::Int64, device)) } else { Tensor::cat(&runs, 0) };
        let groups =
            found.into_iter().map(|(shape, offsets)| Group { shape, count: offsets.len() as i64 }).collect();
        Self { groups, places }
    }

    /// Writes the update of each matrix, of the size of Adam's, into `step` `[N]`; `momentum` is `[N]`.
    pub fn update(&self, momentum: &Tensor, step: &mut Tensor) {
        if self.groups.is_empty() {
            return;
        }
        let sizes: Vec<i64> = self.groups.iter().map(|g| g.count * g.shape[0] * g.shape[1]).collect();
        let parts = momentum.index_select(0, &self.places).split_with_sizes(sizes, 0);
        let updates: Vec<Tensor> = parts
            .iter()
            .zip(&self.groups)
            .map(|(part, Group { shape: [rows, columns], count })| {
                let matrices = part.view([*count, *rows, *columns]);
                (orthogonal(&matrices) * (0.2 * (*rows.max(columns) as f64).sqrt())).flatten(0, -1)
            })
            .collect();
        let _ = step.index_copy_(0, &self.places, &Tensor::cat(&updates, 0));
    }
}

/// The nearest matrices whose singular values are all about 1: `[n, a, b]` f32.
fn orthogonal(matrices: &Tensor) -> Tensor {
    let tall = matrices.size()[1] > matrices.size()[2];
    let kind = if matrices.device().is_cuda() { Kind::BFloat16 } else { Kind::Float };
    let x = if tall { matrices.transpose(1, 2) } else { matrices.shallow_clone() };
    let norm = x.square().sum_dim_intlist([1, 2].as_slice(), true, Kind::Float).sqrt() + 1e-12;
    let mut x = (x / norm).to_kind(kind);
    let (a, b, c) = QUINTIC;
    for _ in 0..ITERATIONS {
        let gram = x.matmul(&x.transpose(1, 2));
        let polynomial = &gram * b + gram.matmul(&gram) * c;
        x = &x * a + polynomial.matmul(&x);
    }
    let x = x.to_kind(Kind::Float);
    if tall { x.transpose(1, 2).contiguous() } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::Init;

    #[test]
    fn a_matrix_s_update_turns_and_scales_no_direction_much_and_the_rest_is_left_alone() {
        tch::manual_seed(1);
        let spec = |name: &str, shape: &[i64]| Spec {
            name: name.into(),
            shape: shape.to_vec(),
            init: Init::Constant(0.0),
        };
        let specs = [
            spec("head.weight", &[8, 8]),
            spec("blocks.0.up.weight", &[12, 8]),
            spec("blocks.0.up.bias", &[12]),
        ];
        let matrices = Matrices::of(&specs, Device::Cpu);
        let momentum = Tensor::randn([64 + 96 + 12], (Kind::Float, Device::Cpu));
        let mut step = momentum.zeros_like() + 7.0;
        matrices.update(&momentum, &mut step);
        assert!(step.narrow(0, 0, 64).eq(7.0).all().int64_value(&[]) == 1, "the head is Adam's");
        assert!(step.narrow(0, 160, 12).eq(7.0).all().int64_value(&[]) == 1, "and so is a bias");
        let scale = 0.2 * 12_f64.sqrt();
        let singular = |flat: &Tensor| {
            let values = flat.narrow(0, 64, 96).view([12, 8]).svd(true, true).1;
            Vec::<f64>::try_from(values).unwrap()
        };
        let values = singular(&(&step / scale));
        assert!(values.iter().all(|value| (0.5..1.5).contains(value)), "{values:?}");
        let before = singular(&momentum);
        assert!(before[0] > 3.0 * before[7], "{before:?}");
    }
}
