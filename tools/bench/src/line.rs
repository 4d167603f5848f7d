//! The line that a measurement prints.

use serde_json::{Map, Value};

/// All fields of several JSON objects in one; later ones win.
pub(crate) fn join<const N: usize>(parts: [Value; N]) -> Value {
    let fields = parts.into_iter().filter_map(|part| match part {
        Value::Object(fields) => Some(fields),
        _ => None,
    });
    Value::Object(fields.flatten().collect::<Map<_, _>>())
}
