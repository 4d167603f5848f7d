//! Flow-match schedule: the shifted sigma table and the conversions between flow, noise and clean latents.
//!
//! Follows section 4.1 of the reference data. Table arithmetic is f32 because the reference tables are; the conversion
//! of a flow to a clean prediction runs in f64 and comes back in f32.

use tch::{Kind, TchError, Tensor};

/// Training timesteps, which is also the largest timestep.
pub const NUM_TRAIN_TIMESTEPS: usize = 1000;

/// Tables of one shift. `sigmas[i]` belongs to `timesteps[i] = 1000 * sigmas[i]`; both fall with `i`.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowScheduler {
    sigmas: Vec<f32>,
    timesteps: Vec<f32>,
}

impl FlowScheduler {
    /// Tables for `shift` (5 for the Wan family's streaming checkpoints).
    pub fn new(shift: f64) -> Self {
        let (scale, slope) = (shift as f32, (shift - 1.0) as f32);
        let count = NUM_TRAIN_TIMESTEPS;
        let sigmas: Vec<f32> = (0..count)
            .map(|i| {
                let u = linspace(1.0, 0.0, count + 1, i);
                (scale * u) / (1.0 + slope * u)
            })
            .collect();
        let timesteps = sigmas.iter().map(|sigma| sigma * count as f32).collect();
        Self { sigmas, timesteps }
    }

    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// Row whose timestep is nearest, the first of equals. Timestep 0 selects the last row, whose sigma is not 0.
    pub fn index(&self, timestep: f64) -> usize {
        let mut best = (0, f64::INFINITY);
        for (i, candidate) in self.timesteps.iter().enumerate() {
            let distance = (f64::from(*candidate) - timestep).abs();
            if distance < best.1 {
                best = (i, distance);
            }
        }
        best.0
    }

    /// Sigma of the row nearest to the timestep.
    pub fn sigma(&self, timestep: f64) -> f32 {
        self.sigmas[self.index(timestep)]
    }

    /// `(1 - sigma) * clean + sigma * noise` in f32, any shape.
    ///
    /// # Errors
    /// The shapes do not broadcast.
    pub fn add_noise(&self, clean: &Tensor, noise: &Tensor, timestep: f64) -> Result<Tensor, TchError> {
        let sigma = self.sigma(timestep);
        let clean = clean.f_to_kind(Kind::Float)?.f_mul_scalar(f64::from(1.0 - sigma))?;
        clean.f_add(&noise.f_to_kind(Kind::Float)?.f_mul_scalar(f64::from(sigma))?)
    }

    /// Clean prediction `noisy - sigma * flow`, computed in f64, returned in f32.
    ///
    /// # Errors
    /// The shapes do not broadcast.
    pub fn x0_from_flow(&self, flow: &Tensor, noisy: &Tensor, timestep: f64) -> Result<Tensor, TchError> {
        let scaled = flow.f_to_kind(Kind::Double)?.f_mul_scalar(f64::from(self.sigma(timestep)))?;
        noisy.f_to_kind(Kind::Double)?.f_sub(&scaled)?.f_to_kind(Kind::Float)
    }

    /// Flow that leads from `noisy` to the clean prediction: `(noisy - clean) / sigma`, in f64, returned in f32.
    ///
    /// # Errors
    /// The shapes do not broadcast.
    pub fn flow_from_x0(&self, clean: &Tensor, noisy: &Tensor, timestep: f64) -> Result<Tensor, TchError> {
        let difference = noisy.f_to_kind(Kind::Double)?.f_sub(&clean.f_to_kind(Kind::Double)?)?;
        difference.f_div_scalar(f64::from(self.sigma(timestep)))?.f_to_kind(Kind::Float)
    }

    /// One Euler step from the timestep's row to the next: `x + flow * (sigma[i + 1] - sigma[i])`; the row after the
    /// last has sigma 0.
    ///
    /// # Errors
    /// The shapes do not broadcast.
    pub fn step(&self, flow: &Tensor, x: &Tensor, timestep: f64) -> Result<Tensor, TchError> {
        let i = self.index(timestep);
        let next = self.sigmas.get(i + 1).copied().unwrap_or(0.0);
        x.f_add(&flow.f_mul_scalar(f64::from(next - self.sigmas[i]))?)
    }

    /// Timestep that a stated step (0 to 1000) stands for in a warped checkpoint: `table[1000 - step]`, with 0 after
    /// the last row. `None` above 1000.
    pub fn warp(&self, step: u32) -> Option<f32> {
        let row = NUM_TRAIN_TIMESTEPS.checked_sub(usize::try_from(step).ok()?)?;
        Some(self.timesteps.get(row).copied().unwrap_or(0.0))
    }

    /// The schedule of Krea's own server: `count` steps evenly spaced from `1000 * strength` to 0, warped.
    pub fn krea_schedule(&self, count: usize, strength: f64) -> Vec<f32> {
        let first = (NUM_TRAIN_TIMESTEPS as f64 * strength) as f32;
        let steps = (0..count).map(|i| linspace(first, 0.0, count, i) as u32);
        steps.filter_map(|step| self.warp(step)).collect()
    }
}

/// Element `i` of `count` evenly spaced f32 values, counted from the nearer end as libtorch does.
fn linspace(start: f32, end: f32, count: usize, i: usize) -> f32 {
    if count == 1 {
        return start;
    }
    let step = (end - start) / (count - 1) as f32;
    if i < count / 2 { start + step * i as f32 } else { end - step * (count - 1 - i) as f32 }
}
