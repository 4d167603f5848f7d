//! Where parameters come from: safetensors files under the original Wan names, or a seed.

use std::path::PathBuf;

use tch::{Device, Tensor};

mod chacha;
mod files;
mod runs;
mod staging;
mod synthetic;

pub use files::SafetensorsSource;
pub use synthetic::SyntheticSource;

/// Why a parameter could not be had.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("weights {source_name}: no tensor {name:?}")]
    Missing { source_name: String, name: String },
    #[error("weights {source_name}: {name} has shape {found:?}, expected {expected:?}")]
    Shape { source_name: String, name: String, expected: Vec<i64>, found: Vec<i64> },
    #[error("weights {source_name}: {name} has dtype {found}; allowed: F32, F16, BF16, F64")]
    Dtype { source_name: String, name: String, found: String },
    #[error("weights: {name}: [{start}, {start}+{len}) of dimension {dim} is outside shape {shape:?}")]
    Range { name: String, shape: Vec<i64>, dim: usize, start: i64, len: i64 },
    #[error("weights {path}: {what}")]
    File { path: PathBuf, what: String },
    #[error("weights {name}: {what}")]
    Torch { name: String, what: String },
    #[error("world size {world} does not divide this model's {heads} heads; allowed: {allowed:?}")]
    WorldSize { world: u32, heads: i64, allowed: Vec<u32> },
    #[error("rank {rank} is outside world size {world}")]
    Rank { rank: u32, world: u32 },
    #[error("weights: unsupported config: {what}")]
    Unsupported { what: String },
}

/// Named parameters. Tensors come back where the source makes them, in the dtype they are stored in; a loader moves and
/// casts them.
pub trait TensorSource: Send + Sync {
    /// The whole tensor `name`, whose shape must be `shape`.
    ///
    /// # Errors
    /// The name is unknown or the shape is another one; both shapes are named.
    fn get(&self, name: &str, shape: &[i64]) -> Result<Tensor, WeightsError>;

    /// The slice `[start, start + len)` of dimension `dim` of the tensor `name`, whose whole shape must be `shape`.
    /// Only that slice is read or computed.
    ///
    /// # Errors
    /// As for [`Self::get`], and when the slice is outside the shape.
    fn narrow(
        &self,
        name: &str,
        shape: &[i64],
        dim: usize,
        start: i64,
        len: i64,
    ) -> Result<Tensor, WeightsError>;

    /// Hexadecimal identity of the values: equal on every rank that reads the same parameters.
    fn fingerprint(&self) -> &str;
}

/// The part of a model that a source holds; names of different parts may coincide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    Dit,
    Text,
    Vae,
}

impl Component {
    /// Name of the file (`.safetensors`) or folder of the part inside a checkpoint folder.
    pub fn name(self) -> &'static str {
        match self {
            Component::Dit => "dit",
            Component::Text => "text",
            Component::Vae => "vae",
        }
    }
}

/// Where the parameters of a whole model come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Made from a seed, equal on every machine.
    Synthetic { seed: u64 },
    /// A folder with `dit`, `text` and `vae`, each a `.safetensors` file or a folder of them; or one file holding all.
    Checkpoint { path: PathBuf },
}

impl Weights {
    /// Opens the source of one part, whose tensors come back on `device`.
    ///
    /// # Errors
    /// The files are missing or are not safetensors.
    pub fn open(&self, component: Component, device: Device) -> Result<Box<dyn TensorSource>, WeightsError> {
        let path = match self {
            Weights::Synthetic { seed } => return Ok(Box::new(SyntheticSource::new(*seed).on(device))),
            Weights::Checkpoint { path } => path,
        };
        let name = component.name();
        let file = path.join(format!("{name}.safetensors"));
        let folder = path.join(name);
        if path.is_file() {
            Ok(Box::new(SafetensorsSource::open(path)?.on(device)))
        } else if file.is_file() {
            Ok(Box::new(SafetensorsSource::open(&file)?.on(device)))
        } else if folder.is_dir() {
            Ok(Box::new(SafetensorsSource::open(&folder)?.on(device)))
        } else {
            let what = format!("holds neither {name}.safetensors nor a folder {name}");
            Err(WeightsError::File { path: path.clone(), what })
        }
    }
}

/// Refuses a slice that is not inside the shape.
fn check_range(name: &str, shape: &[i64], dim: usize, start: i64, len: i64) -> Result<(), WeightsError> {
    let inside =
        shape.get(dim).is_some_and(|size| start >= 0 && len >= 0 && len <= *size && start <= *size - len);
    if inside {
        return Ok(());
    }
    Err(WeightsError::Range { name: name.to_owned(), shape: shape.to_vec(), dim, start, len })
}
