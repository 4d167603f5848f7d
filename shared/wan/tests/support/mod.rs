//! Reading the reference data. Sizes come from the set's own config files and tests walk the keys that are present, so
//! that another set of the same form can be used: `KINEMESH_GOLDENS=<folder>`. Models and inputs live on
//! `KINEMESH_TEST_DEVICE` (default: `cpu`), so that the same binaries check a GPU.
#![allow(dead_code, reason = "each test binary uses its part of this")]
#![allow(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use device::DeviceKind;
use safetensors::tensor::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

pub(crate) mod ranks;
pub(crate) mod stream;

/// The tolerance that the reference data asks for.
pub(crate) const TOLERANCE: f64 = 5e-5;

/// The device under test.
pub(crate) fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let kind =
            std::env::var("KINEMESH_TEST_DEVICE").map_or(DeviceKind::Cpu, |kind| kind.parse().unwrap());
        device::resolve(kind, None).unwrap().device
    })
}

/// A file of the set.
pub(crate) fn path(file: &str) -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    std::env::var_os("KINEMESH_GOLDENS").map_or_else(default, PathBuf::from).join(file)
}

/// A JSON file of the set.
pub(crate) fn json<T: DeserializeOwned>(file: &str) -> T {
    let path = path(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Names of ours and of another project for the same parameters.
pub(crate) fn key_map(file: &str) -> BTreeMap<String, String> {
    json(file)
}

/// One safetensors file of the set, on the device under test.
pub(crate) struct Golden {
    name: String,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
}

impl Golden {
    /// Reads `<name>.safetensors`.
    pub(crate) fn open(name: &str) -> Self {
        let device = device();
        let path = path(&format!("{name}.safetensors"));
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
        let metadata = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
        Self { name: name.to_owned(), tensors: tensors.collect(), metadata }
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }

    /// The tensor under a key that every set of this kind has.
    pub(crate) fn get(&self, key: &str) -> Tensor {
        self.find(key).unwrap_or_else(|| panic!("{}: no {key}", self.name))
    }

    pub(crate) fn find(&self, key: &str) -> Option<Tensor> {
        self.tensors.get(key).map(Tensor::shallow_clone)
    }

    /// The single integer under a key, when it is there.
    pub(crate) fn integer(&self, key: &str) -> Option<i64> {
        self.find(key).map(|t| t.int64_value(&[0]))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// The numbers `n` for which `<prefix><n><suffix>` is a key, ascending.
    pub(crate) fn numbered(&self, prefix: &str, suffix: &str) -> Vec<usize> {
        let number = |key: &String| key.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok();
        let mut numbers: Vec<usize> = self.tensors.keys().filter_map(number).collect();
        numbers.sort_unstable();
        numbers
    }

    pub(crate) fn metadata(&self, key: &str) -> Option<String> {
        self.metadata.get(key).cloned()
    }

    /// A run parameter of the file, when it carries them.
    pub(crate) fn run(&self, key: &str) -> Option<serde_json::Value> {
        let run: serde_json::Value = serde_json::from_str(&self.metadata("run")?).unwrap();
        run.get(key).cloned()
    }

    /// Compares with the tensor under `key`, when the set has it. Says whether it had.
    pub(crate) fn check(&self, key: &str, found: &Tensor) -> bool {
        let Some(expected) = self.find(key) else { return false };
        assert_close(&format!("{} {key}", self.name), found, &expected, TOLERANCE);
        true
    }
}

/// The largest absolute difference.
pub(crate) fn difference(a: &Tensor, b: &Tensor) -> f64 {
    let wide = |x: &Tensor| x.to_device(Device::Cpu).to_kind(Kind::Double);
    (wide(a) - wide(b)).abs().max().double_value(&[])
}

/// Same shape, and no element further off than `tolerance`.
pub(crate) fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size(), "{what}: shape");
    let difference = difference(found, expected);
    assert!(difference <= tolerance, "{what}: differs by {difference:e}, allowed {tolerance:e}");
}
