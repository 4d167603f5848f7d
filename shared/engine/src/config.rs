use collectives::CollectiveError;
use contract::{Error, Reason, WorldSize};
use tch::{Device, Kind};
use wan::config::ModelConfig;
use wan::weights::Weights;

use crate::Place;

/// What one rank computes with.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    pub model: ModelConfig,
    pub weights: Weights,
    pub device: Device,
    /// Threads of one tensor operation. The same on all ranks, or their results may differ in the last bit.
    pub threads: u32,
    /// KV slots, the one for warm-up and canary included.
    pub slots: usize,
    /// Conditioning embeddings that are kept.
    pub conditionings: usize,
    /// Whether calls that repeat are captured as CUDA graphs.
    pub graphs: bool,
    pub place: Place,
}

impl EngineConfig {
    /// What the generator computes in: bf16 on a GPU, with the float32 islands of the model; float32 on a CPU.
    #[must_use]
    pub fn kind(&self) -> Kind {
        compute_kind(self.device)
    }
}

/// What models compute in on a device.
#[must_use]
pub fn compute_kind(device: Device) -> Kind {
    if device.is_cuda() { Kind::BFloat16 } else { Kind::Float }
}

/// Whether ranks on this device can meet: to be asked before they try.
///
/// # Errors
/// `bad_field`, naming what is missing.
pub fn check_transport(device: Device) -> Result<(), Error> {
    if !device.is_cuda() {
        return Ok(());
    }
    let text =
        |e: CollectiveError| format!("device.kind {}: several ranks need NCCL: {e}", device::family(device));
    collectives::nccl::available().map_err(|e| Error::new(Reason::BadField, text(e)))
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
}
