//! Which sources there are and in which order; the `config` crate reads them and lays one over another.
//!
//! It cannot know what these values are for, which is the part below: keys exist only if `T` has them, text is read
//! as the key's type needs it, and a value is tried alone, so that a refusal can name its key (the crate loses the key
//! in flattened sections).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::marker::PhantomData;
use std::mem;
use std::path::Path;

use ::config::builder::{ConfigBuilder, DefaultState};
use ::config::{Config, Environment, File, FileFormat, Map, Source as _, Value, ValueKind};
use serde::Deserialize;

use super::{ConfigError, ENV_PREFIX, SECTIONS, ServiceConfig, Source};

/// The effective values; each remembers where it came from.
#[derive(Clone, Debug)]
pub struct Provenance {
    pub(super) effective: Value,
}

impl Provenance {
    /// Where the value of `section.key` came from.
    #[must_use]
    pub fn of(&self, key: &str) -> Source {
        let value = key.split('.').try_fold(&self.effective, |at, key| section(&at.kind)?.get(key));
        Source::of(value.and_then(Value::origin))
    }

    /// An error about the value of `key`: what is wrong, and where it was set.
    #[must_use]
    pub fn refuse(&self, key: &str, message: impl Display) -> ConfigError {
        ConfigError::new(key, format!("{message} (set by {})", self.of(key)))
    }
}

pub(super) struct Layers<T> {
    defaults: Value,
    layers: ConfigBuilder<DefaultState>,
    kind: PhantomData<T>,
}

impl<T: ServiceConfig> Layers<T> {
    pub(super) fn new() -> Result<Self, ConfigError> {
        // By way of JSON: the crate's own serializer leaves out empty lists and tables, so their keys would be unknown.
        let defaults: Value = serde_json::to_value(T::default())
            .and_then(serde_json::from_value)
            .map_err(|e| ConfigError::new("defaults", e.to_string()))?;
        let layers = Config::builder().add_source(layer(&[], defaults.clone()));
        Ok(Self { defaults, layers, kind: PhantomData })
    }

    pub(super) fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let refused = |e: &dyn Display| ConfigError::new("--config", format!("{}: {e}", path.display()));
        // Given a path, the crate would try other names too, and take bytes that are not UTF-8.
        let text = std::fs::read_to_string(path).map_err(|e| refused(&e))?;
        let mut tree = File::from_str(&text, FileFormat::Toml).collect().map_err(|e| refused(&e))?;
        tree.retain(|name, _| !self.is_of_others(name));
        self.set(&mut Vec::new(), vec![tree.into()], &Source::File(path.to_owned()))
    }

    /// `KINEMESH_SECTION__KEY`; other variables are none of ours.
    pub(super) fn env(&mut self, name: String, text: String) -> Result<(), ConfigError> {
        if !name.strip_prefix(ENV_PREFIX).is_some_and(|rest| rest.contains("__")) {
            return Ok(());
        }
        // A source per variable: the crate's values say that they are from the environment, not from which variable.
        let source = Source::Env(name.clone());
        let variable = Environment::with_prefix(ENV_PREFIX).prefix_separator("").separator("__");
        let variable = variable.source(Some(Map::from([(name, text)])));
        let values = variable.collect().map_err(|e| ConfigError::new(source.to_string(), e.to_string()))?;
        values.into_iter().try_for_each(|(key, text)| {
            if key.split('.').next().is_some_and(|name| self.is_of_others(name)) {
                return Ok(());
            }
            self.text(&key, &text.to_string(), &source)
        })
    }

    /// Whether a section is one that other services have and this one has not.
    fn is_of_others(&self, name: &str) -> bool {
        SECTIONS.contains(&name) && section(&self.defaults.kind).is_some_and(|own| !own.contains_key(name))
    }

    /// `section.key=value`
    pub(super) fn flag(&mut self, assignment: &str) -> Result<(), ConfigError> {
        let (key, text) = assignment.split_once('=').ok_or_else(|| {
            ConfigError::new("--set", format!("{assignment:?}: SECTION.KEY=VALUE is expected"))
        })?;
        self.text(key.trim(), text, &Source::Flag)
    }

    fn text(&mut self, key: &str, text: &str, source: &Source) -> Result<(), ConfigError> {
        let mut path: Vec<_> = key.split('.').map(str::to_owned).collect();
        let readings = readings(self.known(&path, source)?, text);
        self.set(&mut path, readings, source)
    }

    /// Lays the first of `readings` that fits the key's type over what is there; a table for a section, key by key.
    fn set(
        &mut self,
        path: &mut Vec<String>,
        readings: Vec<Value>,
        source: &Source,
    ) -> Result<(), ConfigError> {
        let known = section(self.known(path, source)?).map(names);
        let mut why = None;
        for reading in readings {
            match (&known, reading.kind) {
                (Some(_), ValueKind::Table(table)) => {
                    for (key, value) in BTreeMap::from_iter(table) {
                        path.push(key);
                        self.set(path, vec![value], source)?;
                        path.pop();
                    }
                    return Ok(());
                }
                (Some(names), other) => {
                    why.get_or_insert(format!("{other} is not a section, whose keys are {names}"));
                }
                (None, kind) => {
                    let leaf = layer(path, marked(kind, &source.to_string()));
                    let defaults = Config::builder().add_source(layer(&[], self.defaults.clone()));
                    match read::<T>(&defaults.add_source(leaf.clone())) {
                        Ok(_) => {
                            self.layers = mem::take(&mut self.layers).add_source(leaf);
                            return Ok(());
                        }
                        Err(e) => why.get_or_insert(e),
                    };
                }
            }
        }
        Err(refusal(path, why.unwrap_or_default(), source))
    }

    /// The default at `path`. Below a table without keys of its own, or an unset value, anything goes.
    fn known(&self, path: &[String], source: &Source) -> Result<&ValueKind, ConfigError> {
        let mut at = &self.defaults.kind;
        for (depth, key) in path.iter().enumerate() {
            at = match (at, section(at)) {
                (_, Some(keys)) => match keys.get(key) {
                    Some(value) => &value.kind,
                    None => {
                        let why = format!("unknown key, known here are {}", names(keys));
                        return Err(refusal(&path[..=depth], why, source));
                    }
                },
                (ValueKind::Nil | ValueKind::Table(_), None) => return Ok(&ValueKind::Nil),
                _ => {
                    let why = format!("{} is not a section", path[..depth].join("."));
                    return Err(refusal(path, why, source));
                }
            };
        }
        Ok(at)
    }

    pub(super) fn finish(self) -> Result<(T, Provenance), ConfigError> {
        let (value, effective) = read(&self.layers).map_err(|e| ConfigError::new("configuration", e))?;
        Ok((value, Provenance { effective }))
    }
}

fn refusal(path: &[String], why: impl Display, source: &Source) -> ConfigError {
    ConfigError::new(path.join("."), format!("{why} (set by {source})"))
}

/// By way of JSON: the crate's own deserializer rounds fractions to integers and takes booleans for numbers.
fn read<T: ServiceConfig>(layers: &ConfigBuilder<DefaultState>) -> Result<(T, Value), String> {
    let effective = layers.build_cloned().map_err(|e| e.to_string())?.cache;
    let json = serde_json::Value::deserialize(effective.clone()).map_err(|e| e.to_string())?;
    Ok((serde_json::from_value(json).map_err(|e| e.to_string())?, effective))
}

/// A source of one value.
fn layer(path: &[String], value: Value) -> Config {
    let mut layer = Config::default();
    layer.cache = path.iter().rev().fold(value, |tree, key| Map::from([(key.clone(), tree)]).into());
    layer
}

/// A value with `origin` at every key in it.
fn marked(value: ValueKind, origin: &String) -> Value {
    match value {
        ValueKind::Table(keys) => {
            let keys = keys.into_iter().map(|(key, value)| (key, marked(value.kind, origin)));
            keys.collect::<Map<_, _>>().into()
        }
        value => Value::new(Some(origin), value),
    }
}

/// The keys of a table that has keys of its own.
fn section(value: &ValueKind) -> Option<&Map<String, Value>> {
    match value {
        ValueKind::Table(keys) if !keys.is_empty() => Some(keys),
        _ => None,
    }
}

fn names(keys: &Map<String, Value>) -> String {
    let mut names: Vec<_> = keys.keys().map(String::as_str).collect();
    names.sort_unstable();
    names.join(", ")
}

/// What `text` may mean, given the default it replaces. The key's type decides among them.
fn readings(default: &ValueKind, text: &str) -> Vec<Value> {
    let items = || text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let typed_items = items().map(|item| typed(item).unwrap_or_else(|| item.into()));
    let unset = (*default == ValueKind::Nil && text.is_empty()).then(|| ValueKind::Nil.into());
    let (first, second) = match default {
        ValueKind::Nil | ValueKind::String(_) => (Some(text.into()), typed(text)),
        _ => (typed(text), Some(text.into())),
    };
    let lists = [typed_items.collect::<Vec<_>>().into(), items().collect::<Vec<_>>().into()];
    [unset, first, second].into_iter().flatten().chain(lists).collect()
}

/// As TOML reads it: numbers, booleans, `[1, 2]`, `{ a = 1 }`.
fn typed(text: &str) -> Option<Value> {
    File::from_str(&format!("x = {text}"), FileFormat::Toml).collect().ok()?.remove("x")
}
