//! One lockstep run: broadcast of the tensors, the generator, one small all-reduce of count and digest.

use std::time::{Duration, Instant};

use collectives::{Collective, ReduceOp};
use contract::envelope::MeshTimings;
use contract::tp::Plan;
use contract::{Digest, Error, Rank, Reason};
use tch::{Device, Kind, Tensor};
use tracing::warn;
use wan::config::ModelConfig;
use wan::dit::Tp;
use wan::generator::Graphs;

use crate::executor::Executor;
use crate::{CallTensors, arguments, failure};

/// What a run gave. Counts and agreement are the same on every rank.
#[derive(Debug)]
pub struct Outcome {
    /// `[1, frames, channels, height/8, width/8]`, f32, on rank 0 only.
    pub latents: Option<Tensor>,
    /// Least and greatest number of generator forwards over all ranks, counted where they were made.
    pub least_calls: u32,
    pub most_calls: u32,
    /// Whether all ranks computed the same bytes.
    pub digests_agree: bool,
    /// Of this rank's latents.
    pub digest: Digest,
    /// Broadcast, generator and finish; the others are zero.
    pub timings: MeshTimings,
    pub took: Duration,
}

impl Executor {
    pub(crate) fn run(
        &mut self,
        plan: &Plan,
        tensors: Option<CallTensors>,
        deadline: Instant,
    ) -> Result<Outcome, Error> {
        let started = Instant::now();
        let collective = self.collective.clone().ok_or_else(not_loaded)?;
        let (rank, _, generator) = self.loaded.as_mut().ok_or_else(not_loaded)?;
        let rank = *rank;
        if (rank == Rank::LEADER) != tensors.is_some() {
            return Err(Error::new(Reason::Internal, format!("rank {rank}: only rank 0 is given tensors")));
        }

        let (given, conditioning, context) = match tensors {
            Some(t) => (Some(t.latents_in), t.conditioning, t.context_frames),
            None => (None, None, None),
        };
        let model = &self.config.model;
        let device = self.config.device;
        let all = Broadcast { collective: &*collective, device, deadline };
        let latents_in = all.tensor(given, &latent_shape(model, plan, i64::from(plan.num_latent_frames)))?;
        if plan.conditioning_follows {
            let shape = [1, model.dit.text_len, model.dit.text_dim];
            let conditioning = all.tensor(conditioning, &shape)?;
            self.conditionings.insert(plan.conditioning.clone(), conditioning);
        }
        let context = if plan.do_kv_recompute {
            Some(all.tensor(context, &latent_shape(model, plan, model.kv_cache_num_frames))?)
        } else {
            None
        };
        let held = self.conditionings.touch(&plan.conditioning).ok_or_else(|| {
            Error::new(
                Reason::Internal,
                format!("rank {rank} does not hold conditioning {}", plan.conditioning),
            )
        })?;
        let broadcast = started.elapsed();

        let slot = plan.slot.0 as usize;
        let same = self.prompts.get(slot).is_some_and(|prompt| prompt.as_ref() == Some(&plan.conditioning));
        let conditioning = (!same).then_some(held);
        let args = arguments::chunk_args(plan, &latents_in, conditioning, context.as_ref())?;
        let tp = Tp { collective: &*collective, deadline };
        let had_graphs = *generator.graphs() == Graphs::On;
        let output = generator.generate(slot, &args, &tp).map_err(|e| failure::generator(&e))?;
        if let (true, Graphs::Off { because }) = (had_graphs, generator.graphs()) {
            warn!(because, "no CUDA graphs from here on: calls take longer");
        }
        if let Some(prompt) = self.prompts.get_mut(slot) {
            *prompt = Some(plan.conditioning.clone());
        }
        let generated = started.elapsed();

        let latents = output.latents.f_contiguous();
        let latents = latents.map_err(|e| failure::torch("laying out the latents", &e))?;
        let digest = digest_of(&latents)?;
        let calls = output.generator_calls.read().map_err(|e| failure::torch("counting the forwards", &e))?;
        let agreement = agree(&*collective, calls, &digest, device, deadline)?;
        let took = started.elapsed();
        Ok(Outcome {
            latents: (rank == Rank::LEADER).then_some(latents),
            least_calls: agreement.least_calls,
            most_calls: agreement.most_calls,
            digests_agree: agreement.digests_agree,
            digest,
            timings: MeshTimings {
                broadcast_us: MeshTimings::micros(broadcast),
                generator_us: MeshTimings::micros(generated - broadcast),
                finish_us: MeshTimings::micros(took - generated),
                ..MeshTimings::default()
            },
            took,
        })
    }
}

struct Broadcast<'a> {
    collective: &'a dyn Collective,
    device: Device,
    deadline: Instant,
}

impl Broadcast<'_> {
    /// Rank 0's tensor on every rank, f32 on its device.
    fn tensor(&self, given: Option<Tensor>, shape: &[i64]) -> Result<Tensor, Error> {
        let mut tensor = match (given, self.collective.rank()) {
            (Some(tensor), _) => {
                let placed = tensor.f_to_device(self.device).and_then(|t| t.f_to_kind(Kind::Float));
                placed.and_then(|t| t.f_contiguous())
            }
            (None, 0) => {
                let text = format!("a tensor of shape {shape:?} is missing on rank 0");
                return Err(Error::new(Reason::MissingTensor, text));
            }
            (None, _) => Tensor::f_zeros(shape, (Kind::Float, self.device)),
        }
        .map_err(|e| failure::torch("a tensor to broadcast", &e))?;
        if tensor.size() != shape {
            let text = format!("a tensor has shape {:?}: the plan implies {shape:?}", tensor.size());
            return Err(Error::new(Reason::BadShape, text));
        }
        let sent = self.collective.broadcast(&mut tensor, 0, self.deadline);
        sent.map_err(|e| failure::collective(&e))?;
        Ok(tensor)
    }
}

fn latent_shape(model: &ModelConfig, plan: &Plan, frames: i64) -> [i64; 5] {
    let (rows, columns) = model.latent_size(plan.size.height, plan.size.width);
    [1, frames, model.dit.in_dim, rows, columns]
}

/// SHA-256 of the values' bytes, in memory order.
fn digest_of(latents: &Tensor) -> Result<Digest, Error> {
    let mut values = vec![0_f32; latents.numel()];
    latents
        .f_copy_data(&mut values, latents.numel())
        .map_err(|e| failure::torch("reading the latents for their digest", &e))?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Ok(Digest::of(&[&bytes]))
}

struct Agreement {
    least_calls: u32,
    most_calls: u32,
    digests_agree: bool,
}

/// One all-reduce(min) of count and digest, each with its negation, which makes it a max as well.
fn agree(
    collective: &dyn Collective,
    calls: u64,
    digest: &Digest,
    device: Device,
    deadline: Instant,
) -> Result<Agreement, Error> {
    let calls = calls.cast_signed();
    let digest = i64::try_from(digest.prefix() >> 1).unwrap_or(i64::MAX);
    let mut both = Tensor::from_slice(&[calls, -calls, digest, -digest]).to_device(device);
    collective.all_reduce(&mut both, ReduceOp::Min, deadline).map_err(|e| failure::collective(&e))?;
    let both = both.to_device(Device::Cpu);
    let at = |i: i64| both.int64_value(&[i]);
    let count = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(Agreement { least_calls: count(at(0)), most_calls: count(-at(1)), digests_agree: at(2) == -at(3) })
}

fn not_loaded() -> Error {
    Error::new(Reason::NotLoaded, "the engine has not loaded this epoch")
}
