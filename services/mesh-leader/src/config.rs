use contract::Error;
use engine::check_world_size;
use engine::settings::{DOCS, DeviceSection, MeshSection, ModelSection};
use runtime::config::Provenance;
use runtime::{Common, ConfigError, ServiceConfig};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LeaderSettings {
    #[serde(flatten)]
    pub(crate) common: Common,
    pub(crate) model: ModelSection,
    pub(crate) mesh: MeshSection,
    pub(crate) device: DeviceSection,
}

impl ServiceConfig for LeaderSettings {
    const DOCS: &'static [(&'static str, &'static str)] = DOCS;

    fn common(&self) -> &Common {
        &self.common
    }

    fn validate(&self, provenance: &Provenance) -> Result<(), ConfigError> {
        let at = |key: &'static str| move |e: Error| provenance.refuse(key, e.message);
        let model = self.model.config().map_err(at("model.name"))?;
        self.model.weights().map_err(at("model.weights"))?;
        let chosen = self.device.resolve().map_err(at("device.kind"))?;
        latents::check(self.mesh.link, chosen.device).map_err(at("mesh.link"))?;
        let world_size = self.mesh.world_size().map_err(at("mesh.world_size"))?;
        check_world_size(&model, world_size).map_err(at("mesh.world_size"))?;
        self.mesh.plan().map_err(at("mesh.tp_plan"))?;
        if self.mesh.session_slots == 0 {
            return Err(provenance.refuse("mesh.session_slots", "0: at least 1 is needed"));
        }
        Ok(())
    }
}
