//! A process of its own, since libraries are opened once: this one is told of a folder without CUDA libraries.
#![allow(clippy::unwrap_used, reason = "test code")]

use device::{DeviceError, DeviceKind, resolve};
use tch::Device;

#[test]
fn is_an_error_that_says_what_was_looked_for_and_auto_takes_the_cpu_instead() {
    let nowhere = std::path::Path::new("/nowhere/at/all");
    let Err(DeviceError::Missing { wanted, missing }) = resolve(DeviceKind::Cuda(0), Some(nowhere)) else {
        panic!("found a GPU in a folder that does not exist");
    };
    assert_eq!(wanted, "cuda:0");
    // On a machine without a driver that is what is missing; with one, the library in the folder.
    let expected = ["libcuda.so.1", "/nowhere/at/all"];
    assert!(expected.iter().any(|text| missing.contains(text)), "{missing}");

    let chosen = resolve(DeviceKind::Auto, Some(nowhere)).unwrap();
    assert_eq!(chosen.device, Device::Cpu);
    assert_eq!(chosen.because, format!("auto: {missing}"));
    assert_eq!(resolve(DeviceKind::Cpu, None).unwrap().device, Device::Cpu);
}
