//! Reading the reference data. Sizes come from the set's own config files and tests walk the keys that are present, so
//! that another set of the same form can be used: `KINEMESH_GOLDENS=<folder>`. Models and inputs live on
//! `KINEMESH_TEST_DEVICE` (default: `cpu`), so that the same binaries check a GPU.
#![allow(dead_code, reason = "each test binary uses its part of this")]
#![allow(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeMap;
use std::sync::OnceLock;

use device::DeviceKind;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

mod folder;
mod golden;
pub(crate) mod ranks;
pub(crate) mod source;
pub(crate) mod stream;
pub(crate) mod vae;

pub(crate) use folder::path;
pub(crate) use golden::Golden;

/// The tolerance that the reference data asks for.
pub(crate) const TOLERANCE: f64 = 5e-5;

/// The device under test. Ask before the first tensor: that is when libtorch looks for a GPU.
pub(crate) fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let kind =
            std::env::var("KINEMESH_TEST_DEVICE").map_or(DeviceKind::Cpu, |kind| kind.parse().unwrap());
        device::resolve(kind, None).unwrap().device
    })
}

/// A JSON file of the set.
pub(crate) fn json<T: DeserializeOwned>(file: &str) -> T {
    json_if_present(file).unwrap_or_else(|| panic!("the set has no {file}"))
}

/// A JSON file that holds nothing that the other files do not say too.
pub(crate) fn json_if_present<T: DeserializeOwned>(file: &str) -> Option<T> {
    let path = path(file);
    if !path.exists() {
        return None;
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Some(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// Names of ours and of another project for the same parameters.
pub(crate) type KeyMap = BTreeMap<String, String>;

/// Numbers that mean nothing, the same each time, around 0 with deviation 1.
pub(crate) fn noise(seed: u64, shape: &[i64]) -> Tensor {
    let device = device();
    let drawn = wan::noise::block_noise(seed, 0, 1, 1, 1, shape.iter().product()).unwrap();
    drawn.reshape(shape).to_device(device)
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
