//! Text encoder and transformer, trained together.

use tch::{Device, Kind, Tensor};
use wan::config::ModelConfig;

use crate::dit::TrainDit;
use crate::parameters::{Layout, Weights};
use crate::text::TrainText;

#[derive(Debug)]
pub struct Conditional {
    pub text: TrainText,
    pub dit: TrainDit,
}

impl Conditional {
    pub fn new(config: &ModelConfig, layout: &mut Layout, device: Device) -> Self {
        Self {
            text: TrainText::new(&config.text, layout, device),
            dit: TrainDit::new(&config.dit, layout, device),
        }
    }

    /// Text tokens `[B, L, dim]` of prompts, ids `[B, L]`.
    pub fn condition(&self, w: &Weights, ids: &Tensor) -> Tensor {
        self.dit.text(w, &self.text.forward(w, ids))
    }
}

/// Noise `[B, 3, z, h, w]` whose means over the first two channels are the starts, in standard deviations `[B, 2]`.
///
/// A stream may start anywhere, so the first prediction from pure noise would be the mean of all starts: a smear. Coupling
/// the start to the noise makes it a function of it, as the straight paths of rectified flow do (arXiv 2209.03003), and
/// since the coupling keeps both distributions, any noise serves as before.
pub fn coupled(noise: &Tensor, starts: &Tensor) -> Tensor {
    let size = noise.size();
    let elements = (size[1] * size[3] * size[4]) as f64;
    let coupled = noise.narrow(2, 0, 2);
    let over: &[i64] = &[1, 3, 4];
    let means = coupled.mean_dim(over, true, Kind::Float);
    let wanted = starts.view([-1, 1, 2, 1, 1]) / elements.sqrt();
    Tensor::cat(&[coupled - means + wanted, noise.narrow(2, 2, size[2] - 2)], 2)
}
