//! Laying one source of values over another, key by key.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::Path;

use serde_json::{Map, Value};

use super::{ConfigError, ENV_PREFIX, ServiceConfig, Source};

/// The effective values and where each came from.
#[derive(Clone, Debug)]
pub struct Provenance {
    sources: BTreeMap<String, Source>,
    effective: Value,
}

impl Provenance {
    /// Where the value of `section.key` came from.
    #[must_use]
    pub fn of(&self, key: &str) -> Source {
        self.sources.get(key).cloned().unwrap_or(Source::Default)
    }

    /// An error about the value of `key`: what is wrong, and where it was set.
    #[must_use]
    pub fn refuse(&self, key: &str, message: impl std::fmt::Display) -> ConfigError {
        ConfigError::new(key, format!("{message} (set by {})", self.of(key)))
    }

    pub(super) fn effective(&self) -> &Value {
        &self.effective
    }
}

pub(super) struct Layers<T> {
    defaults: Value,
    effective: Value,
    sources: BTreeMap<String, Source>,
    kind: PhantomData<T>,
}

impl<T: ServiceConfig> Layers<T> {
    pub(super) fn new() -> Result<Self, ConfigError> {
        let defaults =
            serde_json::to_value(T::default()).map_err(|e| ConfigError::new("defaults", e.to_string()))?;
        let effective = defaults.clone();
        Ok(Self { defaults, effective, sources: BTreeMap::new(), kind: PhantomData })
    }

    pub(super) fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| ConfigError::new("--config", format!("{shown}: {e}")))?;
        let table: toml::Table =
            toml::from_str(&text).map_err(|e| ConfigError::new("--config", format!("{shown}: {e}")))?;
        let tree = serde_json::to_value(table).map_err(|e| ConfigError::new("--config", e.to_string()))?;
        self.table(&mut Vec::new(), tree, &Source::File(path.to_owned()))
    }

    fn table(&mut self, path: &mut Vec<String>, value: Value, source: &Source) -> Result<(), ConfigError> {
        let known = self.known(path, source)?;
        match (known, value) {
            (Value::Object(keys), Value::Object(table)) if !keys.is_empty() => {
                for (key, value) in table {
                    path.push(key);
                    self.table(path, value, source)?;
                    path.pop();
                }
                Ok(())
            }
            (_, value) => self.set(path, vec![value], source),
        }
    }

    /// `KINEMESH_SECTION__KEY`; other variables are none of ours.
    pub(super) fn env(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else { return Ok(()) };
        if !rest.contains("__") {
            return Ok(());
        }
        let path: Vec<_> = rest.to_ascii_lowercase().split("__").map(str::to_owned).collect();
        self.text(&path, text, &Source::Env(name.to_owned()))
    }

    /// `section.key=value`
    pub(super) fn flag(&mut self, assignment: &str) -> Result<(), ConfigError> {
        let (key, text) = assignment.split_once('=').ok_or_else(|| {
            ConfigError::new("--set", format!("{assignment:?}: SECTION.KEY=VALUE is expected"))
        })?;
        let path: Vec<_> = key.trim().split('.').map(str::to_owned).collect();
        self.text(&path, text, &Source::Flag)
    }

    fn text(&mut self, path: &[String], text: &str, source: &Source) -> Result<(), ConfigError> {
        let readings = readings(self.known(path, source)?, text);
        self.set(path, readings, source)
    }

    /// Takes the first of `readings` that fits the key's type.
    fn set(&mut self, path: &[String], readings: Vec<Value>, source: &Source) -> Result<(), ConfigError> {
        let key = path.join(".");
        let mut first_error = None;
        for reading in readings {
            let mut alone = self.defaults.clone();
            replace(&mut alone, path, reading.clone());
            match serde_json::from_value::<T>(alone) {
                Ok(_) => {
                    replace(&mut self.effective, path, reading);
                    self.sources.insert(key, source.clone());
                    return Ok(());
                }
                Err(e) => {
                    first_error.get_or_insert(e);
                }
            }
        }
        let why = first_error.map_or_else(|| "no value".to_owned(), |e| e.to_string());
        Err(ConfigError::new(key, format!("{why} (set by {source})")))
    }

    /// The default at `path`. Below a table without keys of its own, or an unset value, anything goes.
    fn known(&self, path: &[String], source: &Source) -> Result<&Value, ConfigError> {
        let mut at = &self.defaults;
        for (depth, key) in path.iter().enumerate() {
            at = match at {
                Value::Object(keys) if keys.is_empty() => return Ok(&Value::Null),
                Value::Object(keys) => keys.get(key).ok_or_else(|| unknown(&path[..=depth], keys, source))?,
                Value::Null => return Ok(&Value::Null),
                _ => {
                    let section = path[..depth].join(".");
                    let message = format!("{section} is not a section (set by {source})");
                    return Err(ConfigError::new(path.join("."), message));
                }
            };
        }
        Ok(at)
    }

    pub(super) fn finish(self) -> Result<(T, Provenance), ConfigError> {
        let value = serde_json::from_value(self.effective.clone())
            .map_err(|e| ConfigError::new("configuration", e.to_string()))?;
        Ok((value, Provenance { sources: self.sources, effective: self.effective }))
    }
}

fn unknown(path: &[String], keys: &Map<String, Value>, source: &Source) -> ConfigError {
    let known = keys.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    ConfigError::new(path.join("."), format!("unknown key (set by {source}): known here are {known}"))
}

fn replace(tree: &mut Value, path: &[String], value: Value) {
    let mut at = tree;
    for key in path {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let Value::Object(keys) = at else { return };
        at = keys.entry(key.clone()).or_insert(Value::Null);
    }
    *at = value;
}

/// What `text` may mean, given the default it replaces. The key's type decides among them.
fn readings(default: &Value, text: &str) -> Vec<Value> {
    let string = Value::String(text.to_owned());
    if default.is_string() {
        return vec![string];
    }
    let mut readings = Vec::new();
    if default.is_null() && text.is_empty() {
        readings.push(Value::Null);
    }
    if default.is_null() {
        readings.push(string.clone());
    }
    readings.extend(scalar_or_list(text));
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    readings.push(items.clone().map(|item| scalar_or_list(item).unwrap_or_else(|| item.into())).collect());
    readings.push(items.map(Value::from).collect());
    if !default.is_null() {
        readings.push(string);
    }
    readings
}

/// As TOML reads it: numbers, booleans, `[1, 2]`, `{ a = 1 }`.
fn scalar_or_list(text: &str) -> Option<Value> {
    let table: toml::Table = toml::from_str(&format!("x = {text}")).ok()?;
    serde_json::to_value(table.get("x")?).ok()
}
