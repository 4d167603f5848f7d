use contract::Error;
use engine::settings::{DOCS, DeviceSection, MeshSection, ModelSection};
use runtime::config::Provenance;
use runtime::{Common, ConfigError, ServiceConfig};
use serde::{Deserialize, Serialize};

/// The configuration of a worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerSettings {
    #[serde(flatten)]
    pub common: Common,
    pub model: ModelSection,
    pub mesh: MeshSection,
    pub device: DeviceSection,
}

impl ServiceConfig for WorkerSettings {
    const DOCS: &'static [(&'static str, &'static str)] = DOCS;

    fn common(&self) -> &Common {
        &self.common
    }

    fn validate(&self, provenance: &Provenance) -> Result<(), ConfigError> {
        let at = |key: &'static str| move |e: Error| provenance.refuse(key, e.message);
        self.model.config().map_err(at("model.name"))?;
        self.model.weights().map_err(at("model.weights"))?;
        self.device.resolve().map_err(at("device.kind"))?;
        if self.mesh.session_slots == 0 {
            return Err(provenance.refuse("mesh.session_slots", "0: at least 1 is needed"));
        }
        Ok(())
    }
}
