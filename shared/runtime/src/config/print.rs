//! The effective configuration as TOML, for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ::config::{Value, ValueKind};
use serde::Deserialize;

use super::Source;

type Docs = [(&'static str, &'static str)];

pub(super) fn toml(effective: &Value, docs: &[&Docs]) -> String {
    let mut out = String::new();
    section(&mut out, "", effective, docs);
    out
}

/// Plain keys first, then a header for each table below.
fn section(out: &mut String, path: &str, value: &Value, docs: &[&Docs]) {
    let ValueKind::Table(keys) = &value.kind else { return };
    let is_section = |value: &Value| matches!(&value.kind, ValueKind::Table(keys) if !keys.is_empty());
    let (sections, plain): (BTreeMap<_, _>, BTreeMap<_, _>) =
        keys.iter().partition(|(_, value)| is_section(value));
    if !path.is_empty() && !plain.is_empty() {
        let _ = writeln!(out, "\n[{path}]");
    }
    for (key, value) in plain {
        let full = join(path, key);
        if let Some((_, doc)) = docs.iter().copied().flatten().find(|(name, _)| *name == full) {
            let _ = writeln!(out, "# {doc}");
        }
        let source = Source::of(value.origin());
        let _ = match shown(key, value) {
            Some(text) => writeln!(out, "{key} = {text}  # {source}"),
            None => writeln!(out, "# {key} is not set  # {source}"),
        };
    }
    for (key, value) in sections {
        section(out, &join(path, key), value, docs);
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// `None` for what is not set.
fn shown(key: &str, value: &Value) -> Option<String> {
    let value = match &value.kind {
        ValueKind::Nil => return None,
        ValueKind::String(_) | ValueKind::Array(_) if is_secret(key) => "(set)".into(),
        ValueKind::String(text) => without_credentials(text).into(),
        _ => value.clone(),
    };
    toml::Value::deserialize(value).map(|v| v.to_string()).ok()
}

/// A key whose name says that its value, not a file that holds it, is secret.
fn is_secret(key: &str) -> bool {
    !key.ends_with("_file")
        && ["password", "secret", "token", "credential"].iter().any(|word| key.contains(word))
}

/// `nats://user:password@host` without the part before the `@`.
fn without_credentials(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            format!("{}(set)@{}", &text[..scheme + 3], &text[at + 1..])
        }
        _ => text.to_owned(),
    }
}
