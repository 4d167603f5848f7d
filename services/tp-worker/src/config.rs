use contract::Error;
use engine::settings::{DOCS, DeviceSection, MeshSection, ModelSection, RankSettings};
use engine::{PlacementSection, When, check_world_size};
use runtime::config::Provenance;
use runtime::{Common, ConfigError, ServiceConfig};
use serde::{Deserialize, Serialize};

use crate::BUILD;

/// The configuration of a worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerSettings {
    #[serde(flatten)]
    pub common: Common,
    pub model: ModelSection,
    pub mesh: MeshSection,
    pub device: DeviceSection,
    pub placement: PlacementSection,
}

impl WorkerSettings {
    /// What the rank is, whichever it will be. `tp_plan_set_by` says where `mesh.tp_plan` was set.
    ///
    /// # Errors
    /// `bad_field`, naming the key.
    pub fn rank(&self, tp_plan_set_by: &str) -> Result<RankSettings, Error> {
        let (model, mesh, device) = (&self.model, &self.mesh, &self.device);
        RankSettings::resolve(model, mesh, device, &self.placement, BUILD, tp_plan_set_by)
    }
}

impl ServiceConfig for WorkerSettings {
    const DOCS: &'static [(&'static str, &'static str)] = DOCS;

    fn common(&self) -> &Common {
        &self.common
    }

    fn validate(&self, provenance: &Provenance) -> Result<(), ConfigError> {
        let at = |key: &'static str| move |e: Error| provenance.refuse(key, e.message);
        self.model.named().map_err(at("model.name"))?;
        self.model.config().map_err(at("model.sizes"))?;
        self.model.weights().map_err(at("model.weights"))?;
        self.device.resolve().map_err(at("device.kind"))?;
        if self.mesh.session_slots == 0 {
            return Err(provenance.refuse("mesh.session_slots", "0: at least 1 is needed"));
        }
        if self.placement.ranks == 0 {
            return Err(provenance.refuse("placement.ranks", "0: at least 1 is needed"));
        }
        Ok(())
    }

    fn memory(&self) -> Result<String, ConfigError> {
        let checked = self.rank("").and_then(|rank| {
            check_world_size(&rank.engine.model, self.mesh.world_size()?)?;
            rank.engine.check_memory(self.mesh.world_size()?, When::BeforeAll)
        });
        checked.map_err(|e| ConfigError::new("device", e.message))
    }
}
