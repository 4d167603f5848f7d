//! Reading a rank's part of the parameters.

use tch::{Device, Kind, Tensor};

use super::{DitError, Ops};
use crate::config::DitConfig;
use crate::weights::{TensorSource, WeightsError};

/// One rank of a tensor-parallel group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub rank: u32,
    pub world: u32,
}

impl Shard {
    /// The only rank of a group of one: all parameters.
    pub const WHOLE: Self = Self { rank: 0, world: 1 };

    /// Refuses a world size that the model cannot be split over, and a rank outside it.
    pub(super) fn check(self, config: &DitConfig) -> Result<(), WeightsError> {
        let allowed = config.valid_world_sizes();
        if !allowed.contains(&self.world) {
            return Err(WeightsError::WorldSize { world: self.world, heads: config.num_heads, allowed });
        }
        if self.rank >= self.world {
            return Err(WeightsError::Rank { rank: self.rank, world: self.world });
        }
        Ok(())
    }
}

/// Reads parameters in the shapes a rank needs, onto its device, in its dtype.
pub(super) struct Loader<'a> {
    pub source: &'a dyn TensorSource,
    pub shard: Shard,
    pub device: Device,
    pub kind: Kind,
    pub ops: Ops,
}

impl Loader<'_> {
    /// The whole tensor.
    pub(super) fn whole(&self, name: &str, shape: &[i64]) -> Result<Tensor, WeightsError> {
        self.place(name, &self.source.get(name, shape)?)
    }

    /// This rank's share of dimension `dim`.
    pub(super) fn part(&self, name: &str, shape: &[i64], dim: usize) -> Result<Tensor, WeightsError> {
        let len = shape[dim] / i64::from(self.shard.world);
        let start = len * i64::from(self.shard.rank);
        self.place(name, &self.source.narrow(name, shape, dim, start, len)?)
    }

    fn place(&self, name: &str, tensor: &Tensor) -> Result<Tensor, WeightsError> {
        let placed = tensor.f_to_device(self.device).and_then(|t| t.f_to_kind(self.kind));
        placed.map_err(|e| torch(name, &e))
    }

    /// Weight `[outputs, inputs]` and bias of a linear layer, whole.
    pub(super) fn linear(&self, name: &str, outputs: i64, inputs: i64) -> Result<Linear, WeightsError> {
        Ok(Linear {
            weight: self.whole(&format!("{name}.weight"), &[outputs, inputs])?,
            bias: self.whole(&format!("{name}.bias"), &[outputs])?,
        })
    }

    /// This rank's rows of linear layers that share their input, stacked into one product: the names' parts follow one
    /// another in the output.
    pub(super) fn columns(
        &self,
        names: &[String],
        outputs: i64,
        inputs: i64,
    ) -> Result<Linear, WeightsError> {
        let parts = |kind: &str, shape: &[i64]| {
            let parts = names.iter().map(|name| self.part(&format!("{name}.{kind}"), shape, 0));
            let parts = parts.collect::<Result<Vec<_>, _>>()?;
            Tensor::f_cat(&parts, 0).map_err(|e| torch(&names.join("+"), &e))
        };
        Ok(Linear { weight: parts("weight", &[outputs, inputs])?, bias: parts("bias", &[outputs])? })
    }

    /// This rank's columns of a linear layer whose output the ranks add up.
    pub(super) fn rows(&self, name: &str, outputs: i64, inputs: i64) -> Result<RowParallel, WeightsError> {
        Ok(RowParallel(Linear {
            weight: self.part(&format!("{name}.weight"), &[outputs, inputs], 1)?,
            bias: self.whole(&format!("{name}.bias"), &[outputs])?,
        }))
    }
}

pub(super) fn torch(name: &str, error: &tch::TchError) -> WeightsError {
    WeightsError::Torch { name: name.to_owned(), what: error.to_string() }
}

/// `x W^T + b` over the last dimension.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    pub(super) fn new(weight: Tensor, bias: Tensor) -> Self {
        Self { weight, bias }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, tch::TchError> {
        x.f_linear(&self.weight, Some(&self.bias))
    }

    /// The same and GELU (tanh form). In one step where that is so: on a CPU libtorch has the erf form there.
    pub(super) fn forward_gelu(&self, x: &Tensor, in_product: bool) -> Result<Tensor, DitError> {
        if !in_product {
            return Ok(self.forward(x)?.f_gelu_("tanh")?);
        }
        let size = x.size();
        let hidden = torch_extra::linear_gelu(&x.f_flatten(0, -2)?, &self.weight, &self.bias)?;
        Ok(hidden.f_unflatten(0, &size[..size.len() - 1])?)
    }
}

/// A linear layer split by inputs: each rank has a partial output, the bias is added once, after the sum.
#[derive(Debug)]
pub(super) struct RowParallel(Linear);

impl RowParallel {
    pub(super) fn forward(&self, x: &Tensor, tp: &super::Tp) -> Result<Tensor, DitError> {
        if tp.world() == 1 {
            return Ok(self.0.forward(x)?);
        }
        let mut sum = x.f_linear(&self.0.weight, None::<&Tensor>)?;
        tp.sum(&mut sum)?;
        Ok(sum.f_add_(&self.0.bias)?)
    }
}
