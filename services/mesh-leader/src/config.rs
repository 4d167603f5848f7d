use contract::Error;
use contract::link::LinkKind;
use engine::settings::{DOCS, DeviceSection, MeshSection, ModelSection, RankSettings};
use engine::{PlacementSection, When, check_world_size};
use runtime::config::Provenance;
use runtime::{Common, ConfigError, ServiceConfig};
use serde::{Deserialize, Serialize};

use crate::link::LinkDesk;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LeaderSettings {
    #[serde(flatten)]
    pub(crate) common: Common,
    pub(crate) model: ModelSection,
    pub(crate) mesh: MeshSection,
    pub(crate) device: DeviceSection,
    pub(crate) placement: PlacementSection,
}

impl LeaderSettings {
    /// What rank 0 is; checked to fit its device. `tp_plan_set_by` says where `mesh.tp_plan` was set.
    ///
    /// # Errors
    /// `bad_field`, naming the key, or what is needed and what there is.
    pub(crate) fn rank(&self, tp_plan_set_by: &str, when: When) -> Result<(RankSettings, String), Error> {
        let (build, placement) = (env!("CARGO_PKG_VERSION"), &self.placement);
        let mut rank =
            RankSettings::resolve(&self.model, &self.mesh, &self.device, placement, build, tp_plan_set_by)?;
        let link = LinkDesk::new(&self.mesh, rank.engine.device, &self.common.cell.id, &rank.model);
        rank.engine.place.link = link.device_bytes();
        let fits = rank.engine.check_memory(self.mesh.world_size()?, when)?;
        Ok((rank, fits))
    }
}

impl ServiceConfig for LeaderSettings {
    const DOCS: &'static [(&'static str, &'static str)] = DOCS;

    fn common(&self) -> &Common {
        &self.common
    }

    fn validate(&self, provenance: &Provenance) -> Result<(), ConfigError> {
        let at = |key: &'static str| move |e: Error| provenance.refuse(key, e.message);
        self.model.named().map_err(at("model.name"))?;
        let model = self.model.config().map_err(at("model.sizes"))?;
        self.model.weights().map_err(at("model.weights"))?;
        let chosen = self.device.resolve().map_err(at("device.kind"))?;
        latents::check(self.mesh.link, chosen.device).map_err(at("mesh.link"))?;
        if self.mesh.link == LinkKind::Nccl {
            latents::far::check_bind(&self.mesh.link_bind).map_err(at("mesh.link_bind"))?;
        }
        let world_size = self.mesh.world_size().map_err(at("mesh.world_size"))?;
        check_world_size(&model, world_size).map_err(at("mesh.world_size"))?;
        self.mesh.plan().map_err(at("mesh.tp_plan"))?;
        if self.mesh.session_slots == 0 {
            return Err(provenance.refuse("mesh.session_slots", "0: at least 1 is needed"));
        }
        if !(1..=self.mesh.world_size).contains(&self.placement.ranks) {
            let text = format!("{}: 1 to mesh.world_size {} is allowed", self.placement.ranks, world_size);
            return Err(provenance.refuse("placement.ranks", text));
        }
        Ok(())
    }

    fn memory(&self) -> Result<String, ConfigError> {
        let rank = self.rank("", When::BeforeAll);
        rank.map(|(_, fits)| fits).map_err(|e| ConfigError::new("device", e.message))
    }
}
