//! Options that several benchmarks have. What is not allowed is refused with exit code 2, naming value and rule.

use std::str::FromStr;

use anyhow::Result;
use clap::builder::PossibleValuesParser;
use contract::link::LinkKind;
use contract::model::Size;
use device::DeviceKind;
use engine::settings::ModelSection;
use serde_json::{Value, json};
use tch::{Device, Kind};
use wan::config::{MODEL_NAMES, ModelConfig};
use wan::dit::Ops;
use wan::weights::{Component, TensorSource, Weights};
use xtask::outcome::Refused;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ModelOptions {
    #[arg(long, default_value = "tiny", value_parser = PossibleValuesParser::new(MODEL_NAMES))]
    model: String,
    /// `auto`, `cpu` or `cuda:N`.
    #[arg(long, default_value = "auto")]
    pub(crate) device: DeviceKind,
}

/// Pixels; default: the model's first size.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct SizeOptions {
    #[arg(long, requires = "width")]
    height: Option<u32>,
    #[arg(long, requires = "height")]
    width: Option<u32>,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct PrecisionOption {
    /// `bf16` or `f32`; default: bf16 on a GPU, f32 on a CPU.
    #[arg(long, value_parser = parse_kind)]
    precision: Option<Kind>,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WeightsOption {
    /// `synthetic:SEED`, or the path of a checkpoint folder.
    #[arg(long = "weights", value_name = "WEIGHTS", default_value = "synthetic:42")]
    named: Named,
}

/// Weights, and what they were called.
#[derive(Clone, Debug)]
struct Named {
    name: String,
    weights: Weights,
}

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) config: ModelConfig,
    /// Height and width in pixels.
    pub(crate) size: (u32, u32),
}

impl ModelOptions {
    /// # Errors
    /// The model is not one that there is.
    pub(crate) fn config(&self) -> Result<ModelConfig> {
        Ok(ModelConfig::named(&self.model)?)
    }

    /// # Errors
    /// [`Refused`] for a size that the model cannot have.
    pub(crate) fn at(&self, size: SizeOptions) -> Result<Subject> {
        let config = self.config()?;
        let size = size.of(&config)?;
        Ok(Subject { config, size })
    }
}

impl PrecisionOption {
    /// What the models compute in.
    pub(crate) fn on(self, device: Device) -> Kind {
        self.precision.unwrap_or(engine::compute_kind(device))
    }
}

impl WeightsOption {
    pub(crate) fn get(&self) -> &Weights {
        &self.named.weights
    }

    /// # Errors
    /// The files are missing or are not safetensors.
    pub(crate) fn open(&self, part: Component, device: Device) -> Result<Box<dyn TensorSource>> {
        Ok(self.get().open(part, device)?)
    }

    pub(crate) fn conditions(&self, kind: Kind) -> Value {
        json!({"weights": self.named.name, "precision": name(kind), "threads": tch::get_num_threads()})
    }
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let section = ModelSection { weights: text.to_owned(), ..ModelSection::default() };
        let weights = section.weights().map_err(|e| e.message)?;
        Ok(Self { name: section.weights, weights })
    }
}

impl SizeOptions {
    /// # Errors
    /// [`Refused`] for a size that cannot be cut into tokens.
    pub(crate) fn of(self, config: &ModelConfig) -> Result<(u32, u32)> {
        let (Some(height), Some(width)) = (self.height, self.width) else { return Ok(config.sizes[0]) };
        let [_, rows, columns] = config.dit.patch_size;
        for (option, value, patch) in [("height", height, rows), ("width", width, columns)] {
            let step = config.vae.spatial_factor() * patch;
            if value == 0 || i64::from(value) % step != 0 {
                let text = format!("--{option} {value}: positive multiples of {step} are allowed");
                return Err(Refused(text).into());
            }
        }
        Ok((height, width))
    }

    /// # Errors
    /// [`Refused`] for a size that sessions of the model cannot have.
    pub(crate) fn served(self, config: &ModelConfig) -> Result<Size> {
        let (height, width) = self.of(config)?;
        if config.serves(height, width) {
            return Ok(Size { height, width });
        }
        let served: Vec<_> = config.sizes.iter().map(|(height, width)| format!("{height}x{width}")).collect();
        let text = format!("--height {height} --width {width}: {} serves {}", config.name, served.join(", "));
        Err(Refused(text).into())
    }
}

impl Subject {
    /// Shape of the latents of one chunk.
    pub(crate) fn latents(&self) -> [i64; 5] {
        let (rows, columns) = self.config.latent_size(self.size.0, self.size.1);
        [1, self.config.num_frame_per_block, self.config.dit.in_dim, rows, columns]
    }

    pub(crate) fn conditions(&self) -> Value {
        json!({
            "model": self.config.name, "height": self.size.0, "width": self.size.1,
            "latent_frames": self.config.num_frame_per_block,
        })
    }
}

/// How the generator streams, and what computes attention and elementwise work.
pub(crate) fn generator_conditions(config: &ModelConfig, ops: &Ops) -> Value {
    json!({
        "window_latent_frames": config.local_attn_size, "steps": config.default_steps,
        "recompute_pass": config.family.recomputes(), "commit_pass": config.family.has_clean_pass(),
        "attention_backend": ops.attention_name(), "elementwise": ops.elementwise_name(), "missing": ops.missing(),
    })
}

/// What the services choose for a model on a device.
pub(crate) fn ops(config: &ModelConfig, device: Device) -> Ops {
    Ops::choose(&config.dit, device, engine::compute_kind(device))
}

/// The device that there is, before the first tensor.
///
/// # Errors
/// [`Refused`] for one that is missing.
pub(crate) fn resolve(kind: DeviceKind) -> Result<Device> {
    resolve_for("--device", kind)
}

/// As [`resolve`], for the option that names it.
///
/// # Errors
/// [`Refused`] for one that is missing.
pub(crate) fn resolve_for(option: &str, kind: DeviceKind) -> Result<Device> {
    Ok(device::resolve(kind, None).map_err(|e| Refused(format!("{option}: {e}")))?.device)
}

/// # Errors
/// [`Refused`] for a world size that does not divide the model.
pub(crate) fn check_world_size(config: &ModelConfig, world_size: u32) -> Result<()> {
    let allowed = config.valid_world_sizes();
    if allowed.contains(&world_size) {
        return Ok(());
    }
    let allowed: Vec<String> = allowed.iter().map(u32::to_string).collect();
    let text = format!("--world-size {world_size}: {} are allowed for {}", allowed.join(", "), config.name);
    Err(Refused(text).into())
}

pub(crate) fn name(kind: Kind) -> &'static str {
    if kind == Kind::BFloat16 { "bf16" } else { "f32" }
}

fn parse_kind(text: &str) -> Result<Kind, String> {
    match text {
        "bf16" => Ok(Kind::BFloat16),
        "f32" => Ok(Kind::Float),
        _ => Err("bf16 or f32 is allowed".to_owned()),
    }
}

pub(crate) fn parse_link(text: &str) -> Result<LinkKind, String> {
    let kind = LinkKind::ALL.into_iter().find(|kind| kind.as_str() == text);
    kind.ok_or_else(|| "shm, cuda-ipc or nccl is allowed".to_owned())
}

/// Weight of past frames in self-attention.
pub(crate) fn parse_bias(text: &str) -> Result<f64, String> {
    let bias = text.parse().ok().filter(|bias| *bias > 0.0 && *bias <= 1.0);
    bias.ok_or_else(|| "a number above 0 and up to 1 is allowed".to_owned())
}
