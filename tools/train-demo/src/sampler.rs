//! The server's sampling loop over the training networks, in batches: for self-rollout, and for a look at how far a run is.

use tch::{Kind, Tensor, no_grad};
use wan::rope::Rope;
use wan::scheduler::FlowScheduler;

use crate::bank::with_head;
use crate::codec::Codec;
use crate::conditional::Conditional;
use crate::parameters::Weights;

/// Timesteps of the server.
pub const STEPS: [f64; 4] = [1000.0, 750.0, 500.0, 250.0];

/// What a chunk is made from, but for the noise.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    pub model: &'a Conditional,
    pub w: &'a Weights,
    /// `[B, 3, z, h, w]` but for the first chunk.
    pub context: Option<&'a Tensor>,
    /// Text tokens `[B, L, dim]`.
    pub text: &'a Tensor,
}

#[derive(Debug)]
pub struct Sampler {
    scheduler: FlowScheduler,
}

impl Default for Sampler {
    fn default() -> Self {
        Self { scheduler: FlowScheduler::new(5.0) }
    }
}

impl Sampler {
    pub fn sigma(&self, timestep: f64) -> f64 {
        f64::from(self.scheduler.sigma(timestep))
    }

    /// Noisy latents as they reach step `steps`, f32, starting from `noise`: what the model itself made of the steps before.
    pub fn noisy(&self, given: Given, rope: &mut Rope, noise: &Tensor, steps: usize) -> Tensor {
        no_grad(|| {
            let mut x = noise.to_kind(Kind::Float);
            for (step, timestep) in STEPS.iter().enumerate().take(steps) {
                let timesteps = Tensor::full([x.size()[0]], *timestep, (Kind::Double, x.device()));
                let flow = given.model.dit.flow(given.w, rope, &x, &timesteps, given.context, given.text);
                let clean = &x - flow.to_kind(Kind::Float) * self.sigma(*timestep);
                let sigma = STEPS.get(step + 1).map_or(0.0, |next| self.sigma(*next));
                x = clean * (1.0 - sigma) + x.randn_like() * sigma;
            }
            x
        })
    }

    /// A whole chunk `[B, 3, z, h, w]`, f32.
    pub fn chunk(&self, given: Given, rope: &mut Rope, noise: &Tensor) -> Tensor {
        self.noisy(given, rope, noise, STEPS.len())
    }
}

/// The context of the chunk after `latents` `[B, 3 * n, z, h, w]`, the whole stream so far, as the server builds it.
pub fn next_context(codec: &Codec, latents: &Tensor) -> Tensor {
    let count = latents.size()[1];
    let last = latents.narrow(1, count - 3, 3);
    if count == 3 {
        return last;
    }
    // The last frame of the chunk's first latent, decoded with what its caches would hold, and encoded alone.
    let from = (count - 6).max(0);
    let pixels = codec.decode(&latents.narrow(1, from, count - 2 - from));
    let frame = pixels.narrow(2, pixels.size()[2] - 1, 1);
    with_head(&codec.encode_pixels(&frame).to_kind(last.kind()), &last)
}
