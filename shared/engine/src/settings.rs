//! Configuration sections that leader and workers share, and what the protocol is told of them.

use std::path::PathBuf;
use std::time::Duration;

use contract::link::LinkKind;
use contract::model::{ModelInfo, TpPlan};
use contract::tensor::Dtype;
use contract::tp::{ChosenPlan, Parity};
use contract::{Error, Reason, WorldSize};
use device::{Chosen, DeviceKind};
use mesh::Timing;
use serde::{Deserialize, Serialize};
use tch::Kind;
use tracing::{info, warn};
use wan::config::ModelConfig;
use wan::dit::Ops;
use wan::weights::Weights;

use crate::{EngineConfig, Place, PlacementSection, compute_kind, fingerprint, model_info};

/// Which model the cell serves. Equal on every rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelSection {
    pub name: String,
    /// `synthetic:SEED`, or the path of a checkpoint folder.
    pub weights: String,
    /// `HEIGHTxWIDTH` each; none is all that the model has.
    pub sizes: Vec<String>,
}

impl Default for ModelSection {
    fn default() -> Self {
        Self { name: "tiny".to_owned(), weights: "synthetic:42".to_owned(), sizes: Vec::new() }
    }
}

impl ModelSection {
    /// The model with all its sizes.
    ///
    /// # Errors
    /// `bad_field` for an unknown name, listing the known ones.
    pub fn named(&self) -> Result<ModelConfig, Error> {
        ModelConfig::named(&self.name).map_err(|e| Error::new(Reason::BadField, e.to_string()))
    }

    /// # Errors
    /// `bad_field` for an unknown name or size, listing the known ones.
    pub fn config(&self) -> Result<ModelConfig, Error> {
        let mut model = self.named()?;
        if self.sizes.is_empty() {
            return Ok(model);
        }
        let written = |(height, width): &(u32, u32)| format!("{height}x{width}");
        let find = |asked: &String| {
            model.sizes.iter().copied().find(|size| written(size) == *asked).ok_or_else(|| {
                let allowed: Vec<_> = model.sizes.iter().map(written).collect();
                let text = format!("model.sizes {asked:?}: {} are allowed", allowed.join(", "));
                Error::new(Reason::BadField, text)
            })
        };
        let chosen = self.sizes.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        model.sizes = chosen;
        Ok(model)
    }

    /// # Errors
    /// `bad_field` for a seed that is no number.
    pub fn weights(&self) -> Result<Weights, Error> {
        match self.weights.strip_prefix("synthetic:") {
            None => Ok(Weights::Checkpoint { path: PathBuf::from(&self.weights) }),
            Some(seed) => seed.parse().map(|seed| Weights::Synthetic { seed }).map_err(|_| {
                let text = format!("model.weights {:?}: synthetic:SEED or a path is allowed", self.weights);
                Error::new(Reason::BadField, text)
            }),
        }
    }
}

/// What a process computes with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceSection {
    pub kind: DeviceKind,
    /// Threads of one tensor operation; the same on all ranks.
    pub threads: u32,
    /// Folder of `libtorch_cuda.so`, where that is not the folder of the libtorch in use.
    pub cuda_libraries: Option<PathBuf>,
    /// The most of the device that may be planned with: checked before anything is loaded, not enforced afterwards.
    pub memory_limit_mib: Option<u64>,
}

impl Default for DeviceSection {
    fn default() -> Self {
        Self { kind: DeviceKind::Auto, threads: 1, cuda_libraries: None, memory_limit_mib: None }
    }
}

impl DeviceSection {
    /// The device in effect. To be called before the process makes its first tensor.
    ///
    /// # Errors
    /// `bad_field` for a GPU that is not there, saying what was looked for and where.
    pub fn resolve(&self) -> Result<Chosen, Error> {
        device::resolve(self.kind, self.cuda_libraries.as_deref())
            .map_err(|e| Error::new(Reason::BadField, e.to_string()))
    }

    /// [`Self::memory_limit_mib`] in bytes.
    #[must_use]
    pub fn memory_limit(&self) -> Option<u64> {
        Some(self.memory_limit_mib?.saturating_mul(1 << 20))
    }
}

/// The mesh. Durations in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MeshSection {
    /// Read by the leader, which tells the workers; of a worker's own, only `--print-memory` knows.
    pub world_size: u32,
    /// Compared at join only where both sides set it.
    pub tp_plan: Option<TpPlan>,
    pub session_slots: u32,
    /// Of the leader and stage0.
    pub link: LinkKind,
    /// `host:port` at which the leader waits for stage0's end of an nccl link; stage0 is told the address that is bound.
    pub link_bind: String,
    /// Conditioning embeddings that every rank keeps.
    pub conditionings: u32,
    /// Whether calls that repeat are captured as CUDA graphs.
    pub cuda_graphs: bool,
    /// `host:port` of the leader's liveness socket; workers are told the address that is bound.
    pub liveness_bind: String,
    pub beat_silence_ms: u64,
    pub watchdog_ms: u64,
    pub orphan_grace_ms: u64,
    pub lease_ttl_ms: u64,
    pub load_ms: u64,
    /// A leader key that was not renewed for this long may be taken.
    pub leader_ttl_ms: u64,
}

impl Default for MeshSection {
    fn default() -> Self {
        Self {
            world_size: 1,
            tp_plan: None,
            session_slots: 2,
            link: LinkKind::Shm,
            link_bind: "127.0.0.1:0".to_owned(),
            conditionings: 16,
            cuda_graphs: true,
            liveness_bind: "127.0.0.1:0".to_owned(),
            beat_silence_ms: 800,
            watchdog_ms: 5_000,
            orphan_grace_ms: 120_000,
            lease_ttl_ms: 3_000,
            load_ms: 120_000,
            leader_ttl_ms: 2_000,
        }
    }
}

/// One line about `device.cuda_libraries`, which stage 0 has too.
pub const CUDA_LIBRARIES: (&str, &str) =
    ("device.cuda_libraries", "folder of libtorch_cuda.so; default: where the loaded libtorch is");

/// One line about `device.memory_limit_mib`, which stage 0 has too.
pub const MEMORY_LIMIT: (&str, &str) = (
    "device.memory_limit_mib",
    "the most of the device's memory to plan with: what needs more is not loaded; default: all that is free",
);

/// One line about `model.sizes`, which stage 0 has too.
pub const SIZES: (&str, &str) = (
    "model.sizes",
    "HEIGHTxWIDTH of the pictures that are served, the default first, the same in all services; none: all of the model's",
);

/// One line about each key, for `--print-config`.
pub const DOCS: &[(&str, &str)] = &[
    ("model.name", "tiny, demo, wan-1.3b or wan-14b"),
    ("model.weights", "synthetic:SEED, or the path of a checkpoint folder"),
    SIZES,
    ("device.kind", "auto, cpu or cuda:N"),
    ("device.threads", "threads of one tensor operation, the same on all ranks"),
    CUDA_LIBRARIES,
    MEMORY_LIMIT,
    ("placement.stage0", "whether stage0 computes on the same device, so that its memory is counted too"),
    ("placement.ranks", "ranks that compute on this device, this one included"),
    ("mesh.world_size", "ranks of the mesh; read by the leader, and by a worker's --print-memory"),
    ("mesh.tp_plan", "v1_generator_only or v0_full_pipeline; compared at join only where both sides set it"),
    ("mesh.session_slots", "KV slots for sessions, the same on all ranks"),
    (
        "mesh.link",
        "how latents get to stage0 and back: shm; where both have GPUs cuda-ipc, or nccl, also between hosts; read by the leader",
    ),
    ("mesh.link_bind", "address at which the leader waits for stage0's end of an nccl link"),
    ("mesh.conditionings", "conditioning embeddings that every rank keeps, the same on all ranks"),
    (
        "mesh.cuda_graphs",
        "whether a GPU launches the work of calls that repeat as a whole, which takes memory",
    ),
    ("mesh.liveness_bind", "address of the leader's liveness socket"),
    ("mesh.beat_silence_ms", "a worker that is silent for this long has stopped"),
    ("mesh.watchdog_ms", "a worker without its leader for this long drops the epoch"),
    ("mesh.orphan_grace_ms", "a worker without any leader for this long ends with code 3"),
    ("mesh.lease_ttl_ms", "a controller that is silent for this long may be replaced"),
    ("mesh.load_ms", "time to read the weights"),
    ("mesh.leader_ttl_ms", "a leader that is silent for this long may be replaced"),
];

impl MeshSection {
    /// # Errors
    /// `bad_field` for 0.
    pub fn world_size(&self) -> Result<WorldSize, Error> {
        WorldSize::try_from(self.world_size)
    }

    /// The plan in effect on the leader.
    ///
    /// # Errors
    /// `bad_field` for a plan of one rank on a mesh of several.
    pub fn plan(&self) -> Result<TpPlan, Error> {
        let plan = self.tp_plan.unwrap_or(TpPlan::V1GeneratorOnly);
        if plan == TpPlan::V0FullPipeline && self.world_size > 1 {
            let text =
                format!("mesh.tp_plan v0_full_pipeline: world_size is {}, 1 is allowed", self.world_size);
            return Err(Error::new(Reason::BadField, text));
        }
        Ok(plan)
    }

    #[must_use]
    pub fn timing(&self) -> Timing {
        let ms = Duration::from_millis;
        Timing {
            lease_ttl: ms(self.lease_ttl_ms),
            beat_silence: ms(self.beat_silence_ms),
            watchdog: ms(self.watchdog_ms),
            orphan_grace: ms(self.orphan_grace_ms),
            load: ms(self.load_ms),
            ..Timing::default()
        }
    }
}

/// A rank's sections, put together and checked.
#[derive(Clone, Debug)]
pub struct RankSettings {
    pub engine: EngineConfig,
    pub model: ModelInfo,
    pub parity: Parity,
}

impl RankSettings {
    /// `tp_plan_set_by` says where `mesh.tp_plan` was set.
    ///
    /// # Errors
    /// `bad_field`, naming the key.
    pub fn resolve(
        model: &ModelSection,
        mesh: &MeshSection,
        device: &DeviceSection,
        placement: &PlacementSection,
        build: &str,
        tp_plan_set_by: &str,
    ) -> Result<Self, Error> {
        let (config, weights) = (model.config()?, model.weights()?);
        let chosen = device.resolve()?;
        info!(device = ?chosen.device, because = chosen.because, "device");
        let kind = compute_kind(chosen.device);
        let ops = Ops::choose(&config.dit, chosen.device, kind);
        info!(attention = ops.attention_name(), elementwise = ops.elementwise_name(), "implementations");
        for missing in ops.missing() {
            warn!(missing, "libtorch's own operations take its place, which are slower");
        }
        let fingerprint = fingerprint(&config, &weights)?;
        let info = model_info(&config, &fingerprint)?;
        let parity = Parity {
            build: build.to_owned(),
            model_fingerprint: fingerprint,
            dtype: dtype_of(kind),
            device: device::family(chosen.device).to_owned(),
            attention_backend: ops.to_string(),
            tp_plan: mesh.tp_plan.map(|plan| ChosenPlan { plan, set_by: tp_plan_set_by.to_owned() }),
        };
        let engine = EngineConfig {
            model: config,
            weights,
            device: chosen.device,
            threads: device.threads,
            slots: mesh.session_slots as usize + 1,
            conditionings: mesh.conditionings as usize,
            graphs: mesh.cuda_graphs,
            place: Place { beside: placement.clone(), limit: device.memory_limit(), link: 0 },
        };
        Ok(Self { engine, model: info, parity })
    }
}

fn dtype_of(kind: Kind) -> Dtype {
    if kind == Kind::BFloat16 { Dtype::Bf16 } else { Dtype::F32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_that_were_chosen_in_that_order() {
        let of = |sizes: &[&str]| {
            let sizes = sizes.iter().map(ToString::to_string).collect();
            ModelSection { sizes, ..ModelSection::default() }.config()
        };
        assert_eq!(of(&[]).unwrap().sizes.len(), 4);
        assert_eq!(of(&["160x96", "128x128"]).unwrap().sizes, [(160, 96), (128, 128)]);
        let error = of(&["128x129"]).unwrap_err().message;
        assert!(error.contains("128x129") && error.contains("128x128, 160x160"), "{error}");
    }
}
