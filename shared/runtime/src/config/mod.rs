//! Configuration in layers: defaults in code, then a TOML file, then `KINEMESH_<SECTION>__<KEY>`, then `--set`. Every
//! value remembers where it came from.

mod layers;
mod print;
mod sections;

use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;

use clap::{Args, FromArgMatches};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use layers::Provenance;
pub use sections::{
    CellSection, Common, HttpSection, LogFormat, LogSection, RecorderSection, SECTIONS, ShutdownSection,
};

use crate::lifecycle::About;

/// Prefix of environment keys. Only names with `__` in them are configuration.
pub const ENV_PREFIX: &str = "KINEMESH_";

/// A service's configuration. Every key must be serialised always (no `skip_serializing_if`): the keys of
/// `Default::default()` are the keys that exist. A table that is empty by default takes any keys.
pub trait ServiceConfig: Serialize + DeserializeOwned + Default {
    /// `("section.key", "one line about it")`, shown by `--print-config`.
    const DOCS: &'static [(&'static str, &'static str)] = &[];

    fn common(&self) -> &Common;

    /// Checks what types cannot: ranges, keys that exclude each other. Make errors with [`Provenance::refuse`], so that
    /// they say where the value came from.
    ///
    /// # Errors
    /// The key, its value and what is allowed.
    fn validate(&self, _provenance: &Provenance) -> Result<(), ConfigError> {
        Ok(())
    }

    /// The memory that the service will need, in one line for `--print-memory`.
    ///
    /// # Errors
    /// Its device has less. The error says what is needed all the same.
    fn memory(&self) -> Result<String, ConfigError> {
        Ok("no model is held here".to_owned())
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Default,
    File(PathBuf),
    /// The variable's name.
    Env(String),
    /// `--set`
    Flag,
}

impl Source {
    /// Whether someone chose the value.
    #[must_use]
    pub fn is_explicit(&self) -> bool {
        *self != Self::Default
    }

    /// Reads what a value's origin says: nothing, or a source as it is displayed.
    fn of(origin: Option<&str>) -> Self {
        match origin {
            None => Self::Default,
            Some("--set") => Self::Flag,
            Some(shown) => match shown.strip_prefix("file ") {
                Some(path) => Self::File(path.into()),
                None => Self::Env(shown.to_owned()),
            },
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => f.write_str(name),
            Self::Flag => f.write_str("--set"),
        }
    }
}

/// Names the key, the value, what is allowed and where the value came from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct ConfigError {
    pub key: String,
    pub message: String,
}

impl ConfigError {
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }
}

/// Arguments of every service.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// TOML file with settings.
    #[arg(long, value_name = "FILE", env = "KINEMESH_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print the effective settings as TOML, with where each came from, and exit.
    #[arg(long)]
    pub print_config: bool,
    /// Print the memory that this service will need, with what is placed beside it, and exit: with 2 if that is not free.
    #[arg(long)]
    pub print_memory: bool,
    /// Set one key; stronger than file and environment. May be given several times.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigArgs {
    pub(crate) fn parse(about: About) -> Self {
        let command = clap::Command::new(about.name).version(about.version).about(about.about);
        let matches = Self::augment_args(command).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|e| e.exit())
    }
}

/// A configuration and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    pub value: T,
    pub provenance: Provenance,
    docs: &'static [(&'static str, &'static str)],
}

impl<T> Deref for Loaded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: ServiceConfig> Loaded<T> {
    /// Where the value of `section.key` came from.
    #[must_use]
    pub fn provenance(&self, key: &str) -> Source {
        self.provenance.of(key)
    }

    /// The effective settings as TOML; secrets are shown as `(set)`.
    #[must_use]
    pub fn print(&self) -> String {
        print::toml(&self.provenance.effective, &[sections::DOCS, self.docs])
    }
}

/// Loads from the file and the `--set` values in `args` and from this process's environment.
///
/// # Errors
/// The file cannot be read, a key is unknown, a value does not fit: each names the key and where it was set.
pub fn load<T: ServiceConfig>(args: &ConfigArgs) -> Result<Loaded<T>, ConfigError> {
    load_with(
        args,
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
    )
}

/// [`load`] with the environment given.
///
/// # Errors
/// As [`load`].
pub fn load_with<T: ServiceConfig>(
    args: &ConfigArgs,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded<T>, ConfigError> {
    let mut layers = layers::Layers::<T>::new()?;
    if let Some(path) = &args.config {
        layers.file(path)?;
    }
    let mut env: Vec<_> = env.into_iter().collect();
    env.sort();
    for (name, text) in env {
        layers.env(name, text)?;
    }
    for assignment in &args.set {
        layers.flag(assignment)?;
    }
    let (value, provenance) = layers.finish()?;
    value.validate(&provenance)?;
    Ok(Loaded { value, provenance, docs: T::DOCS })
}
