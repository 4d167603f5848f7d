//! Stages 2 and 3: text encoder and transformer.
//!
//! Stage 2 is flow matching (arXiv 2210.02747, 2209.03003) on chunks with a clean context (teacher forcing), mostly at the
//! four timesteps that the server samples at. In this world, what comes next is a function of context and prompt, and the
//! start of a stream one of the noise (see [`crate::conditional::coupled`]): so the clean prediction is sharp at each of them,
//! and no adversarial distillation is needed (compare CausVid, arXiv 2412.07772). Part of the steps start from what the
//! model itself made of the timesteps before.
//!
//! Stage 3, the last part of the same run (`--rollout`), adds contexts that the model generated itself, through the VAE and back as the server does it:
//! Self-Forcing (arXiv 2506.08009), with the world's own continuation as the target instead of a learnt critic.

use std::path::PathBuf;

use anyhow::Result;
use demo_world::caption::{Style, caption};
use demo_world::scene::Scene;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor, no_grad};
use wan::rope::Rope;

use crate::attributes::{self, Reader};
use crate::bank::{Bank, Batch};
use crate::budget::{Budget, Length};
use crate::codec::{Codec, upload};
use crate::conditional::{Conditional, coupled};
use crate::look;
use crate::parameters::{Layout, Parameters, Weights};
use crate::sampler::{Given, STEPS, Sampler, next_context};
use crate::samples::{Sample, World};
use crate::scenes::rate;
use crate::stage_vae::{compute_kind, read_config};
use crate::tokens::{Captions, UNKNOWN};
use crate::{dit, text};

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub length: Length,
    /// Folder with `vae.safetensors`, `config.json` and `tokenizer.json`.
    #[arg(long)]
    pub vae: PathBuf,
    /// Where weights, curve and samples go.
    #[arg(long)]
    pub out: PathBuf,
    /// Folder with `dit.safetensors` and `text.safetensors` to start from.
    #[arg(long)]
    pub from: Option<PathBuf>,
    /// State to go on from, if it is there, and to save to.
    #[arg(long)]
    pub state: Option<PathBuf>,
    #[arg(long, default_value_t = 128)]
    pub batch: usize,
    /// Encoded clips that are kept.
    #[arg(long, default_value_t = 8192)]
    pub bank: usize,
    /// Of them, how many are exchanged each step.
    #[arg(long, default_value_t = 4)]
    pub refresh: usize,
    #[arg(long, default_value_t = 1e-3)]
    pub rate: f64,
    /// Share of steps on later chunks whose context the model generates, in the last part of the training.
    #[arg(long, default_value_t = 0.4)]
    pub rollout: f64,
    /// Share of steps that start from what the model made of the timesteps before.
    #[arg(long, default_value_t = 0.4)]
    pub ladder: f64,
    /// Own steps and contexts from the beginning: the weights to start from already make something.
    #[arg(long, requires = "from")]
    pub tune: bool,
    #[command(flatten)]
    pub world: World,
    /// Muon instead of Adam for the matrices of the blocks.
    #[arg(long)]
    pub muon: bool,
    /// How much more an error counts where an object of usual size is, on top of what it counts elsewhere; where a small one is,
    /// the more.
    #[arg(long, default_value_t = 4.0)]
    pub focus: f64,
    /// Weight of the loss on what the text encoder understood.
    #[arg(long, default_value_t = 0.05)]
    pub attributes: f64,
    /// Scenes that are generated and looked at in the end.
    #[arg(long, default_value_t = 64)]
    pub look: usize,
    #[arg(long, default_value_t = 2)]
    pub seed: u64,
}

/// Everything that a step needs.
#[derive(Debug)]
struct Stage<'a> {
    options: &'a Options,
    model: Conditional,
    reader: Reader,
    codec: Codec,
    captions: Captions,
    bank: Bank,
    sampler: Sampler,
    rope: Rope,
    device: Device,
    kind: Kind,
}

/// Trains, then writes `dit.safetensors`, `text.safetensors` and what samples look like. Returns the last mean loss.
///
/// # Errors
/// A file cannot be read or written.
pub fn run(options: &Options, device: Device) -> Result<f64> {
    std::fs::create_dir_all(&options.out)?;
    let config = read_config(&options.vae.join("config.json"))?;
    let kind = if device.is_cuda() { Kind::BFloat16 } else { Kind::Float };
    tch::manual_seed(options.seed as i64);
    let mut layout = Layout::default();
    let model = Conditional::new(&config, &mut layout, device);
    let reader = Reader::new(config.text.dim, &mut layout);
    let mut parameters = Parameters::new(layout, device);
    println!("model: {} parameters on {device:?}", parameters.count());
    if let Some(from) = &options.from {
        let (text, dit) = (from.join("text.safetensors"), from.join("dit.safetensors"));
        parameters.import(&[(text::PREFIX, &text), (dit::PREFIX, &dit)])?;
    }
    if options.muon {
        parameters.use_muon();
    }
    let begun = match &options.state {
        Some(state) if state.is_file() => parameters.load_state(state)?,
        _ => (0, 0.0),
    };
    let codec = Codec::load(&config.vae, &options.vae, device, compute_kind(device))?;
    let captions = Captions::open(&options.vae.join("tokenizer.json"), config.text.text_len)?;
    let clock = std::time::Instant::now();
    // Clips that are never exchanged are the same in every run of the stage.
    let seed = if options.refresh == 0 { options.seed } else { options.seed.wrapping_add_signed(begun.0) };
    let bank = Bank::new(options.bank, options.world, seed, &codec);
    println!("model: {} clips encoded in {:.1} s", options.bank, clock.elapsed().as_secs_f64());
    let rope = Rope::new(config.dit.head_dim(), device);
    let mut stage = Stage {
        options,
        model,
        reader,
        codec,
        captions,
        bank,
        sampler: Sampler::default(),
        rope,
        device,
        kind,
    };
    let mut budget = Budget::new(&options.length, begun, &options.out.join("model.csv"))?;
    let last = stage.train(&mut parameters, &mut budget)?;
    if let Some(state) = &options.state {
        parameters.save_state(state, budget.step, budget.seconds())?;
    }
    parameters.export(dit::PREFIX, &options.out.join("dit.safetensors"))?;
    parameters.export(text::PREFIX, &options.out.join("text.safetensors"))?;
    if options.look > 0 {
        let _guard = tch::no_grad_guard();
        let w = parameters.averaged(kind);
        look::at(
            options.look,
            &options.out,
            &stage.captions,
            &stage.model,
            &w,
            &stage.codec,
            &mut stage.rope,
        )?;
    }
    Ok(last)
}

impl Stage<'_> {
    fn train(&mut self, parameters: &mut Parameters, budget: &mut Budget) -> Result<f64> {
        // One column for each kind of step: the first chunk, the others, from own steps, after an own context.
        // Then the loss of the attributes, and the norm of the gradient.
        let mut sums = Tensor::zeros([KINDS.len() as i64 + 2], (Kind::Float, self.device));
        let (mut counts, mut last) = ([0.0; KINDS.len()], f64::NAN);
        while budget.goes_on() {
            let (pictures, understood, sort) =
                self.losses(&parameters.weights(self.kind), budget.step, budget.progress())?;
            (&pictures + &understood * self.options.attributes).backward();
            let rate = self.options.rate * rate(budget.progress(), budget.step, 300);
            let norm = parameters.update(rate, 0.9985);
            no_grad(|| {
                let places = [sort, KINDS.len(), KINDS.len() + 1];
                for (place, value) in places.into_iter().zip([&pictures, &understood, &norm]) {
                    let _ = sums.get(place as i64).g_add_(value);
                }
            });
            counts[sort] += 1.0;
            budget.step += 1;
            if budget.step % EXCHANGE == 0 {
                self.bank.refresh(self.options.refresh * EXCHANGE as usize, &self.codec);
            }
            if budget.step % 50 == 0 || !budget.goes_on() {
                let values = Vec::<f64>::try_from(&sums)?;
                let steps: f64 = counts.iter().sum();
                let mut named: Vec<(&str, f64)> = KINDS
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| counts[*i] > 0.0)
                    .map(|(i, name)| (*name, values[i] / counts[i]))
                    .collect();
                last = values[..KINDS.len()].iter().sum::<f64>() / steps;
                named.push(("attributes", values[KINDS.len()] / steps));
                named.push(("norm", values[KINDS.len() + 1] / steps));
                budget.report(&named)?;
                (sums, counts) = (sums.zeros_like(), [0.0; KINDS.len()]);
            }
        }
        budget.finish();
        Ok(last)
    }

    /// The losses of pictures and of attributes of one step, and the former's index in [`KINDS`]. What it draws is a function
    /// of seed and step.
    fn losses(&mut self, w: &Weights, step: i64, progress: f64) -> Result<(Tensor, Tensor, usize)> {
        tch::manual_seed((self.options.seed as i64) << 32 | step);
        let seed = self.options.seed.wrapping_mul(1_000_003).wrapping_add_signed(step);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let chunk = match rng.random_range(0..100) {
            // Every later chunk takes over what the first one shows.
            0..32 => 0,
            32..52 => 1,
            _ => 2,
        };
        // What the model makes of its own is worth learning from once it makes something.
        let share = |of: f64, from: f64, to: f64| {
            let share = if self.options.tune { 1.0 } else { (progress - from) / (to - from) };
            of * share.clamp(0.0, 1.0)
        };
        let own_context = chunk > 0 && rng.random_bool(share(self.options.rollout, 0.5, 0.7));
        // A stream of its own from its very first chunk, or one that goes on from a clip.
        let from_start = own_context && (chunk == 1 || rng.random_bool(0.5));
        let own_steps = rng.random_bool(share(self.options.ladder, 0.15, 0.35));
        let own_steps = if own_steps { rng.random_range(1..STEPS.len()) } else { 0 };
        let mut batch = self.bank.draw(chunk, self.options.batch, chunk == 0 || from_start, &mut rng);
        let prompts = self.embedded(w, &self.texts(&batch.rows, &mut rng)?);
        if own_context {
            let context = self.generated_context(w, &batch, from_start, &prompts);
            batch.context = Some(context.to_kind(self.kind));
        }
        let context = batch.context.as_ref().map(|context| self.disturbed(context, &mut rng));
        let text = self.condition(w, &batch, &prompts, chunk);
        let target = batch.target.to_kind(Kind::Float);
        let noise = self.noise(&batch, chunk);
        let (x, timesteps, sigma) = if own_steps > 0 {
            let detached = text.detach();
            let given = Given { model: &self.model, w, context: context.as_ref(), text: &detached };
            let x = self.sampler.noisy(given, &mut self.rope, &noise, own_steps);
            let timestep = STEPS[own_steps];
            let options = (Kind::Double, self.device);
            let sigma = Tensor::full([target.size()[0]], self.sampler.sigma(timestep), options);
            (x, Tensor::full([target.size()[0]], timestep, options), sigma)
        } else {
            self.noised(&target, &noise, &mut rng)
        };
        let sigma = sigma.to_kind(Kind::Float).view([-1, 1, 1, 1, 1]);
        let flow = self.model.dit.flow(w, &mut self.rope, &x, &timesteps, context.as_ref(), &text);
        let clean = &x - flow.to_kind(Kind::Float) * &sigma;
        // An error of the flow counts the less the less noise there is; this keeps the last steps in view.
        let weight = (sigma.square() + 0.05).reciprocal();
        let focus = focus(&batch.objects) * self.options.focus + 1.0;
        let pictures = ((clean - target).square() * weight * focus).mean(Kind::Float);
        let understood = self.reader.loss(w, &Tensor::cat(&prompts, 0), &self.said(&batch.rows));
        let sort = match (own_context, own_steps > 0, chunk) {
            (true, _, _) => 3,
            (_, true, _) => 2,
            (_, _, 0) => 0,
            _ => 1,
        };
        Ok((pictures, understood, sort))
    }

    /// Ids of the prompts before and after a change, `[B, L]` each.
    fn texts(&self, rows: &[usize], rng: &mut impl Rng) -> Result<[Tensor; 2]> {
        let mut ids = [Vec::new(), Vec::new()];
        for row in rows {
            let sample = self.bank.sample(*row);
            for (ids, scene) in ids.iter_mut().zip([&sample.from, &sample.to]) {
                let mut text = self.captions.ids(&caption(scene, Style::Varied, rng))?;
                if rng.random_bool(0.1) {
                    // A word that nobody knows says nothing.
                    text.insert(rng.random_range(0..6), UNKNOWN);
                    text.pop();
                }
                ids.extend(text);
            }
        }
        let rows = rows.len() as i64;
        Ok(ids.map(|ids| upload(&Tensor::from_slice(&ids).view([rows, -1]), self.device)))
    }

    /// What the prompts of [`texts`](Self::texts) say, all those before a change first.
    fn said(&self, rows: &[usize]) -> Tensor {
        let scenes = |of: fn(&Sample) -> &Scene| rows.iter().map(move |row| of(self.bank.sample(*row)));
        attributes::of(scenes(|sample| &sample.from).chain(scenes(|sample| &sample.to)), self.device)
    }

    /// Embedded prompts before and after a change, `[B, L, dim]` each.
    fn embedded(&self, w: &Weights, ids: &[Tensor; 2]) -> [Tensor; 2] {
        let both = self.model.text.forward(w, &Tensor::cat(ids, 0)).chunk(2, 0);
        std::array::from_fn(|i| both[i].shallow_clone())
    }

    /// Text tokens of a chunk, on its way from one prompt to the other.
    fn condition(&self, w: &Weights, batch: &Batch, [from, to]: &[Tensor; 2], chunk: usize) -> Tensor {
        let amounts: Vec<f32> = batch.rows.iter().map(|row| self.bank.sample(*row).amounts[chunk]).collect();
        let amounts = upload(&Tensor::from_slice(&amounts), self.device);
        let amounts = amounts.to_kind(from.kind()).view([-1, 1, 1]);
        self.model.dit.text(w, &from.lerp_tensor(to, &amounts))
    }

    /// Noise for a chunk of the batch; that of first chunks tells where they start.
    fn noise(&self, batch: &Batch, chunk: usize) -> Tensor {
        let noise = Tensor::randn(batch.target.size(), (Kind::Float, self.device));
        if chunk > 0 {
            return noise;
        }
        let starts: Vec<f32> = batch
            .rows
            .iter()
            .flat_map(|row| {
                let (x, y) = self.bank.sample(*row).start.unwrap_or_default();
                // In units of the noise, whatever the spread of the starts.
                let unit = |value: f32| {
                    if self.options.world.spread > 0.0 { value / self.options.world.spread } else { 0.0 }
                };
                [unit(x), unit(y)]
            })
            .collect();
        if self.options.world.spread > 0.0 {
            coupled(&noise, &upload(&Tensor::from_slice(&starts).view([-1, 2]), self.device))
        } else {
            noise
        }
    }

    /// Target and noise mixed, mostly at the server's timesteps.
    fn noised(&self, target: &Tensor, noise: &Tensor, rng: &mut impl Rng) -> (Tensor, Tensor, Tensor) {
        let drawn: Vec<(f64, f64)> = (0..target.size()[0])
            .map(|_| {
                let timestep = match rng.random_range(0..100) {
                    0..34 => STEPS[0],
                    34..50 => STEPS[1],
                    50..66 => STEPS[2],
                    66..82 => STEPS[3],
                    _ => {
                        let timestep = rng.random_range(20.0..1000.0);
                        return (timestep, timestep / 1000.0);
                    }
                };
                (timestep, self.sampler.sigma(timestep))
            })
            .collect();
        let column = |of: fn(&(f64, f64)) -> f64| {
            upload(&Tensor::from_slice(&drawn.iter().map(of).collect::<Vec<_>>()), self.device)
        };
        let (timesteps, sigmas) = (column(|d| d.0), column(|d| d.1));
        let sigma = sigmas.to_kind(Kind::Float).view([-1, 1, 1, 1, 1]);
        (target * (1.0 - &sigma) + noise * &sigma, timesteps, sigmas)
    }

    /// Half of the contexts with a little noise: what the model will see of its own is never quite clean.
    fn disturbed(&self, context: &Tensor, rng: &mut impl Rng) -> Tensor {
        let batch = context.size()[0];
        let scales: Vec<f32> = (0..batch)
            .map(|_| if rng.random_bool(0.5) { rng.random_range(0.0..0.15) } else { 0.0 })
            .collect();
        let scales =
            upload(&Tensor::from_slice(&scales), self.device).to_kind(context.kind()).view([-1, 1, 1, 1, 1]);
        context + context.randn_like() * scales
    }

    /// The context of the batch's chunk, whose last chunk the model made itself; `from_start`, all before it.
    fn generated_context(
        &mut self,
        w: &Weights,
        batch: &Batch,
        from_start: bool,
        prompts: &[Tensor; 2],
    ) -> Tensor {
        no_grad(|| {
            let clean = self.bank.latents_of(&batch.rows, 0);
            let mut made = |chunk: usize, context: Option<&Tensor>| {
                let text = self.condition(w, batch, prompts, chunk);
                let noise = self.noise(batch, chunk);
                let given = Given { model: &self.model, w, context, text: &text };
                self.sampler.chunk(given, &mut self.rope, &noise).to_kind(self.kind)
            };
            let first = if from_start { made(0, None) } else { clean };
            if batch.chunk == 1 {
                return first;
            }
            let second = made(1, Some(&first));
            next_context(&self.codec, &Tensor::cat(&[first, second], 1))
        })
    }
}

/// How much errors count at each place beyond the others, `[B, 3, 1, h, w]` f32 from such a map of where objects are: an object
/// counts the same however small it is, within a factor.
fn focus(objects: &Tensor) -> Tensor {
    let objects = objects.to_kind(Kind::Float);
    let area = objects.mean_dim([1, 2, 3, 4].as_slice(), true, Kind::Float);
    objects * (USUAL_AREA / area.clamp_min(1e-3)).clamp(0.5, 3.0)
}

/// Share of the latents in which there is an object of medium size.
const USUAL_AREA: f64 = 0.13;
/// Steps between exchanges of clips: encoding few at a time costs a GPU as much as encoding many.
const EXCHANGE: i64 = 8;
/// Names of the losses.
const KINDS: [&str; 4] = ["first", "next", "own_steps", "own_context"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_object_counts_as_much_as_a_large_one() {
        let objects = Tensor::zeros([2, 3, 1, 20, 20], (Kind::Float, Device::Cpu));
        for (row, side) in [(0, 5), (1, 10)] {
            let _ = objects.get(row).narrow(2, 0, side).narrow(3, 0, side).fill_(1.0);
        }
        let counts = focus(&objects).sum_dim_intlist([1, 2, 3, 4].as_slice(), false, Kind::Double);
        assert!((counts.double_value(&[0]) - counts.double_value(&[1])).abs() < 1e-3, "{counts}");
        // A place of the small one has four times the weight, and where there is none there is none.
        let at = |row, place| focus(&objects).double_value(&[row, 0, 0, place, place]);
        assert!((at(0, 0) / at(1, 0) - 4.0).abs() < 1e-6 && at(0, 19) == 0.0);
        // Nothing at all divides by nothing.
        assert_eq!(focus(&objects.zeros_like()).double_value(&[0, 0, 0, 0, 0]), 0.0);
    }
}
