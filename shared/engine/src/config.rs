use std::str::FromStr;

use contract::{Error, Reason, WorldSize};
use serde::{Deserialize, Serialize};
use tch::Device;
use wan::config::ModelConfig;
use wan::weights::Weights;

/// What one rank computes with.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    pub model: ModelConfig,
    pub weights: Weights,
    pub device: DeviceKind,
    /// Threads of one tensor operation. The same on all ranks, or their results may differ in the last bit.
    pub threads: u32,
    /// KV slots, the one for warm-up and canary included.
    pub slots: usize,
    /// Conditioning embeddings that are kept.
    pub conditionings: usize,
}

/// `auto`, `cpu` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceKind {
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

impl DeviceKind {
    /// # Errors
    /// `unsupported_parameter` for a device this build has no collective for.
    pub fn resolve(self) -> Result<Device, Error> {
        match self {
            Self::Auto | Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(n) => Err(Error::new(
                Reason::UnsupportedParameter,
                format!(
                    "device.kind cuda:{n}: this build runs ranks on the CPU only, cpu or auto is allowed"
                ),
            )),
        }
    }
}

impl FromStr for DeviceKind {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let cuda = |text: &str| text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda);
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            other => cuda(other).ok_or_else(|| {
                Error::new(Reason::BadField, format!("device {text:?}: auto, cpu or cuda:N is allowed"))
            }),
        }
    }
}

impl TryFrom<String> for DeviceKind {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<DeviceKind> for String {
    fn from(kind: DeviceKind) -> Self {
        match kind {
            DeviceKind::Auto => "auto".to_owned(),
            DeviceKind::Cpu => "cpu".to_owned(),
            DeviceKind::Cuda(n) => format!("cuda:{n}"),
        }
    }
}

/// # Errors
/// `unsupported_world_size`, listing the world sizes that divide the model's heads.
pub fn check_world_size(model: &ModelConfig, world_size: WorldSize) -> Result<(), Error> {
    let valid = model.valid_world_sizes();
    if valid.contains(&world_size.get()) {
        return Ok(());
    }
    let valid: Vec<String> = valid.iter().map(u32::to_string).collect();
    Err(Error::new(
        Reason::UnsupportedWorldSize,
        format!(
            "world_size {world_size} does not divide the {} heads of model {}: {} are allowed",
            model.dit.num_heads,
            model.name,
            valid.join(", ")
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_size_that_does_not_divide_the_heads_is_refused_with_the_valid_ones() {
        let model = ModelConfig::named("tiny").unwrap();
        let error = check_world_size(&model, WorldSize::try_from(3).unwrap()).unwrap_err();
        assert_eq!(error.reason, Reason::UnsupportedWorldSize);
        assert!(error.message.ends_with("1, 2, 4 are allowed"), "{}", error.message);
        check_world_size(&model, WorldSize::try_from(4).unwrap()).unwrap();
    }

    #[test]
    fn devices_are_named_as_in_the_configuration() {
        assert_eq!("cuda:1".parse::<DeviceKind>().unwrap(), DeviceKind::Cuda(1));
        assert!("gpu".parse::<DeviceKind>().unwrap_err().message.contains("auto, cpu or cuda:N"));
    }
}
