//! Parameters of a network in one flat tensor: one cast, one optimiser step and one moving average for all of them.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::orthogonal::Matrices;

/// How a parameter starts.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    Constant(f64),
    /// Normal with this deviation.
    Normal(f64),
    Values(Vec<f32>),
}

/// A parameter under its checkpoint name.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub shape: Vec<i64>,
    pub init: Init,
}

impl Spec {
    /// Elements.
    pub(crate) fn len(&self) -> i64 {
        self.shape.iter().product()
    }

    /// A draw of the start, `[N]` on the CPU.
    fn start(&self) -> Tensor {
        let options = (Kind::Float, Device::Cpu);
        match &self.init {
            Init::Constant(value) => Tensor::full([self.len()], *value, options),
            Init::Normal(deviation) => Tensor::randn([self.len()], options) * *deviation,
            Init::Values(values) => Tensor::from_slice(values),
        }
    }
}

/// Place of a parameter among those of its network.
#[derive(Clone, Copy, Debug)]
pub struct Slot(usize);

/// Weights in force for one pass, by slot.
#[derive(Debug)]
pub struct Weights(Vec<Tensor>);

impl std::ops::Index<Slot> for Weights {
    type Output = Tensor;

    fn index(&self, slot: Slot) -> &Tensor {
        &self.0[slot.0]
    }
}

/// Collects the parameters of a network while it is put together.
#[derive(Debug, Default)]
pub struct Layout {
    specs: Vec<Spec>,
}

impl Layout {
    pub fn add(&mut self, name: impl Into<String>, shape: &[i64], init: Init) -> Slot {
        self.specs.push(Spec { name: name.into(), shape: shape.to_vec(), init });
        Slot(self.specs.len() - 1)
    }

    /// Weight with deviation `gain / sqrt(fan_in)` and, as the next slot, a zero bias.
    pub fn linear(&mut self, name: &str, shape: &[i64], gain: f64) -> (Slot, Slot) {
        let fan_in: i64 = shape[1..].iter().product();
        let weight = self.add(format!("{name}.weight"), shape, Init::Normal(gain / (fan_in as f64).sqrt()));
        (weight, self.add(format!("{name}.bias"), &shape[..1], Init::Constant(0.0)))
    }
}

/// AdamW without decay (Kingma and Ba, arXiv 1412.6980), for matrices also Muon, and a moving average of the parameters.
#[derive(Debug)]
pub struct Parameters {
    specs: Vec<Spec>,
    /// `[N]` f32, the leaf.
    values: Tensor,
    first: Tensor,
    second: Tensor,
    pub average: Tensor,
    updates: i64,
    /// What Muon updates.
    matrices: Option<Matrices>,
}

const BETAS: (f64, f64) = (0.9, 0.98);
const EPSILON: f64 = 1e-8;
/// Share of the mean of gradients, beside the present one, in what Muon makes orthogonal.
const MOMENTUM: f64 = 0.9;

impl Parameters {
    /// Fresh parameters; the draw follows libtorch's CPU generator.
    pub fn new(layout: Layout, device: Device) -> Self {
        let parts: Vec<Tensor> = layout.specs.iter().map(Spec::start).collect();
        Self::from_values(layout.specs, &Tensor::cat(&parts, 0).to_device(device))
    }

    fn from_values(specs: Vec<Spec>, values: &Tensor) -> Self {
        Self {
            specs,
            first: values.zeros_like(),
            second: values.zeros_like(),
            average: values.copy(),
            values: values.detach().copy().set_requires_grad(true),
            updates: 0,
            matrices: None,
        }
    }

    /// From now on the matrices of hidden layers are updated by Muon.
    pub fn use_muon(&mut self) {
        self.matrices = Some(Matrices::of(&self.specs, self.values.device()));
    }

    /// The same network, with these values and no history.
    pub fn copy(&self) -> Self {
        Self::from_values(self.specs.clone(), &self.average)
    }

    pub fn count(&self) -> i64 {
        self.values.size()[0]
    }

    /// The weights as the loss sees them, in `kind`.
    pub fn weights(&self, kind: Kind) -> Weights {
        self.cut(&self.values.to_kind(kind))
    }

    /// The averaged weights, which know no gradient.
    pub fn averaged(&self, kind: Kind) -> Weights {
        self.cut(&self.average.to_kind(kind))
    }

    fn cut(&self, flat: &Tensor) -> Weights {
        let sizes: Vec<i64> = self.specs.iter().map(Spec::len).collect();
        let parts = flat.split_with_sizes(sizes, 0);
        Weights(parts.iter().zip(&self.specs).map(|(part, spec)| part.view(spec.shape.as_slice())).collect())
    }

    /// One update from the gradient that is there, its norm clipped to 1; returns the norm before, on the device.
    pub fn update(&mut self, rate: f64, averaging: f64) -> Tensor {
        tch::no_grad(|| {
            let gradient = self.values.grad();
            let norm = gradient.norm();
            let gradient = &gradient * (&norm + 1e-12).reciprocal().clamp_max(1.0);
            self.updates += 1;
            let _ = self.first.lerp_(&gradient, 1.0 - BETAS.0);
            let _ = self.second.lerp_(&gradient.square(), 1.0 - BETAS.1);
            let correction = |beta: f64| 1.0 - beta.powi(self.updates.try_into().unwrap_or(i32::MAX));
            let spread = (&self.second / correction(BETAS.1)).sqrt() + EPSILON;
            let mut step = &self.first / spread / correction(BETAS.0);
            if let Some(matrices) = &self.matrices {
                matrices.update(&gradient.lerp(&self.first, MOMENTUM), &mut step);
            }
            let _ = self.values.g_sub_(&(step * rate));
            self.values.zero_grad();
            // Early on the average forgets the start.
            let averaging = averaging.min((1.0 + self.updates as f64) / (10.0 + self.updates as f64));
            let _ = self.average.lerp_(&self.values, 1.0 - averaging);
            norm
        })
    }

    /// Everything that a later run goes on from.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_state(&self, path: &Path, step: i64, seconds: f64) -> Result<()> {
        let progress = Tensor::from_slice(&[step as f64, seconds, self.updates as f64]);
        let tensors = [
            ("values", self.values.detach()),
            ("first", self.first.shallow_clone()),
            ("second", self.second.shallow_clone()),
            ("average", self.average.shallow_clone()),
            ("progress", progress),
        ];
        let on_cpu: Vec<(&str, Tensor)> = tensors
            .into_iter()
            .map(|(name, tensor)| (name, tensor.to_device(Device::Cpu).contiguous()))
            .collect();
        // Never half a file: a run may be cut at any time.
        let part = path.with_extension("part");
        Tensor::write_safetensors(&on_cpu, &part)?;
        std::fs::rename(&part, path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Goes on from a state; returns its step and the seconds it took.
    ///
    /// # Errors
    /// The file cannot be read, or is of another network.
    pub fn load_state(&mut self, path: &Path) -> Result<(i64, f64)> {
        let tensors: HashMap<String, Tensor> = Tensor::read_safetensors(path)?.into_iter().collect();
        let get = |name: &str| tensors.get(name).with_context(|| format!("{}: no {name}", path.display()));
        let device = self.values.device();
        for (name, own) in
            [("first", &mut self.first), ("second", &mut self.second), ("average", &mut self.average)]
        {
            ensure!(get(name)?.size() == own.size(), "{}: {name} is of another network", path.display());
            *own = get(name)?.to_device(device);
        }
        self.values = get("values")?.to_device(device).set_requires_grad(true);
        let progress = Vec::<f64>::try_from(get("progress")?)?;
        self.updates = progress[2] as i64;
        Ok((progress[0] as i64, progress[1]))
    }

    /// Writes the averaged parameters whose names begin with `prefix`, without it, in f16.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn export(&self, prefix: &str, path: &Path) -> Result<()> {
        let weights = self.averaged(Kind::Float);
        let named: Vec<(&str, Tensor)> = self
            .specs
            .iter()
            .zip(&weights.0)
            .filter_map(|(spec, tensor)| Some((spec.name.strip_prefix(prefix)?, tensor)))
            .map(|(name, tensor)| (name, tensor.to_device(Device::Cpu).to_kind(Kind::Half).contiguous()))
            .collect();
        Tensor::write_safetensors(&named, path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Starts over from exported files, one for each prefix; parameters of other prefixes stay as they are.
    ///
    /// # Errors
    /// A file cannot be read, a parameter is missing or has another shape.
    pub fn import(&mut self, files: &[(&str, &Path)]) -> Result<()> {
        let mut found: HashMap<String, Tensor> = HashMap::new();
        for (prefix, path) in files {
            let tensors =
                Tensor::read_safetensors(path).with_context(|| format!("cannot read {}", path.display()))?;
            found.extend(tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
        }
        let own = self.cut(&self.average);
        let parts = self.specs.iter().zip(&own.0).map(|(spec, own)| {
            if !files.iter().any(|(prefix, _)| spec.name.starts_with(prefix)) {
                return Ok(own.flatten(0, -1));
            }
            let tensor = found.get(&spec.name).with_context(|| format!("no {}", spec.name))?;
            ensure!(
                tensor.size() == spec.shape,
                "{}: {:?}, expected {:?}",
                spec.name,
                tensor.size(),
                spec.shape
            );
            Ok(tensor.to_device(own.device()).to_kind(Kind::Float).flatten(0, -1))
        });
        let values = Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0);
        *self = Self::from_values(std::mem::take(&mut self.specs), &values);
        Ok(())
    }
}
