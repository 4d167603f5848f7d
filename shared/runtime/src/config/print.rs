//! The effective configuration as TOML, for people.

use std::fmt::Write as _;

use serde_json::Value;

use super::layers::Provenance;

type Docs = [(&'static str, &'static str)];

pub(super) fn toml(effective: &Value, provenance: &Provenance, docs: &[&Docs]) -> String {
    let mut out = String::new();
    section(&mut out, "", effective, provenance, docs);
    out
}

/// Plain keys first, then a header for each table below.
fn section(out: &mut String, path: &str, value: &Value, provenance: &Provenance, docs: &[&Docs]) {
    let Value::Object(keys) = value else { return };
    let is_section = |value: &Value| matches!(value, Value::Object(keys) if !keys.is_empty());
    let plain: Vec<_> = keys.iter().filter(|(_, value)| !is_section(value)).collect();
    if !path.is_empty() && !plain.is_empty() {
        let _ = writeln!(out, "\n[{path}]");
    }
    for (key, value) in plain {
        let full = join(path, key);
        if let Some((_, doc)) = docs.iter().copied().flatten().find(|(name, _)| *name == full) {
            let _ = writeln!(out, "# {doc}");
        }
        let source = provenance.of(&full);
        let _ = match shown(key, value) {
            Some(text) => writeln!(out, "{key} = {text}  # {source}"),
            None => writeln!(out, "# {key} is not set  # {source}"),
        };
    }
    for (key, value) in keys.iter().filter(|(_, value)| is_section(value)) {
        section(out, &join(path, key), value, provenance, docs);
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// `None` for what is not set.
fn shown(key: &str, value: &Value) -> Option<String> {
    if value.is_null() {
        return None;
    }
    if is_secret(key) && (value.is_string() || value.is_array()) {
        return Some("\"(set)\"".to_owned());
    }
    let value = match value {
        Value::String(text) => Value::String(without_credentials(text)),
        other => other.clone(),
    };
    toml::Value::try_from(&value).map(|v| v.to_string()).ok()
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
