//! One safetensors file of the set, and comparing with it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::tensor::{Dtype, SafeTensors};
use tch::{Kind, Tensor};

use super::{TOLERANCE, assert_close, device, path};

/// The tensors of a file, on the device under test. A set may leave out what follows from other tensors of it, so
/// comparisons are with the keys that are present; a test ends with [`Golden::assert_compared`].
pub(crate) struct Golden {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
    compared: Cell<usize>,
}

impl Golden {
    /// Reads `<name>.safetensors`.
    pub(crate) fn open(name: &str) -> Self {
        Self::open_if_present(name).unwrap_or_else(|| panic!("the set has no {name}.safetensors"))
    }

    /// Reads `<name>.safetensors`, which holds nothing that the other files do not say too.
    pub(crate) fn open_if_present(name: &str) -> Option<Self> {
        let path = path(&format!("{name}.safetensors"));
        if !path.exists() {
            return None;
        }
        let device = device();
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = file.iter().map(|(key, view)| {
            let kind = match view.dtype() {
                Dtype::F32 => Kind::Float,
                Dtype::I64 => Kind::Int64,
                Dtype::U8 => Kind::Uint8,
                other => panic!("{name}: {key} has dtype {other:?}"),
            };
            let shape: Vec<i64> = view.shape().iter().map(|s| *s as i64).collect();
            (key.to_owned(), Tensor::from_data_size(view.data(), &shape, kind).to_device(device))
        });
        let tensors = tensors.collect();
        let metadata = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
        Some(Self { path, tensors, metadata, compared: Cell::new(0) })
    }

    /// The tensor under a key that nothing else in the set says: an input.
    pub(crate) fn get(&self, key: &str) -> Tensor {
        self.find(key).unwrap_or_else(|| panic!("{}: no {key}, which is an input", self.path.display()))
    }

    pub(crate) fn find(&self, key: &str) -> Option<Tensor> {
        self.tensors.get(key).map(Tensor::shallow_clone)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(key, tensor)| (key.as_str(), tensor))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What stands between `prefix` and `suffix` in the keys that have both.
    pub(crate) fn between<'a>(&'a self, prefix: &str, suffix: &str) -> Vec<&'a str> {
        self.names().filter_map(|key| key.strip_prefix(prefix)?.strip_suffix(suffix)).collect()
    }

    /// The numbers `n` for which `<prefix><n><suffix>` is a key, ascending.
    pub(crate) fn numbered(&self, prefix: &str, suffix: &str) -> Vec<usize> {
        let mut numbers: Vec<usize> =
            self.between(prefix, suffix).into_iter().filter_map(|n| n.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    }

    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// A parameter of the run that made the file, when it carries them.
    pub(crate) fn run(&self, key: &str) -> Option<serde_json::Value> {
        let run: serde_json::Value = serde_json::from_str(self.metadata("run")?).unwrap();
        run.get(key).cloned()
    }

    /// An integer parameter of the run that made the file.
    pub(crate) fn run_integer(&self, key: &str) -> i64 {
        let value = self.run(key).and_then(|value| value.as_i64());
        value.unwrap_or_else(|| panic!("{}: the metadata's run states no {key}", self.path.display()))
    }

    /// Compares with the tensor under `key`, when the set has it. Says whether it had.
    pub(crate) fn check(&self, key: &str, found: &Tensor) -> bool {
        self.check_within(key, found, TOLERANCE)
    }

    /// As [`Self::check`], with a tolerance of its own.
    pub(crate) fn check_within(&self, key: &str, found: &Tensor, tolerance: f64) -> bool {
        self.check_part(key, Tensor::shallow_clone, found, tolerance)
    }

    /// As [`Self::check_within`], with a part of the tensor under `key`.
    pub(crate) fn check_part(
        &self,
        key: &str,
        part: impl FnOnce(&Tensor) -> Tensor,
        found: &Tensor,
        tolerance: f64,
    ) -> bool {
        let Some(expected) = self.tensors.get(key) else { return false };
        assert_close(&format!("{} {key}", self.path.display()), found, &part(expected), tolerance);
        self.compared.set(self.compared.get() + 1);
        true
    }

    /// Compares with the single integer under `key`, when the set has it.
    pub(crate) fn check_integer(&self, key: &str, found: i64) {
        self.check_within(key, &Tensor::from_slice(&[found]), 0.0);
    }

    /// Compares with all the integers under `key`, when the set has them.
    pub(crate) fn check_integers(&self, key: &str, found: &[i64]) {
        self.check_within(key, &Tensor::from_slice(found), 0.0);
    }

    /// A test that met none of its keys has shown nothing.
    pub(crate) fn assert_compared(&self) {
        let keys: Vec<_> = self.names().collect();
        assert!(self.compared.get() > 0, "{}: nothing to compare with among {keys:?}", self.path.display());
    }
}
