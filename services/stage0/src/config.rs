//! The configuration of stage 0.

use std::time::Duration;

use contract::Error;
use engine::settings::{CUDA_LIBRARIES, DeviceSection, MEMORY_LIMIT, ModelSection, SIZES};
use runtime::config::{Common, Provenance};
use runtime::{ConfigError, ServiceConfig};
use serde::{Deserialize, Serialize};

use crate::attendance::Patience;
use crate::call_budget::Bounds;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    #[serde(flatten)]
    pub common: Common,
    pub model: ModelSection,
    pub device: DeviceSection,
    pub stage0: Stage0Section,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Stage0Section {
    pub max_sessions: u32,
    pub pause_without_viewer_s: u64,
    pub end_without_viewer_s: u64,
    pub min_bitrate_kbps: u32,
    pub max_bitrate_kbps: u32,
    /// Budget of a call until enough of them were measured, and its ceiling from then on.
    pub call_budget_ms: u64,
    /// The least budget of a call, however fast they are.
    pub call_budget_floor_ms: u64,
    /// How long a session waits for a mesh that is gone.
    pub recovery_s: u64,
}

impl Default for Stage0Section {
    fn default() -> Self {
        Self {
            max_sessions: 2,
            pause_without_viewer_s: 10,
            end_without_viewer_s: 60,
            min_bitrate_kbps: 50,
            max_bitrate_kbps: 10_000,
            call_budget_ms: 10_000,
            call_budget_floor_ms: 2_000,
            recovery_s: 120,
        }
    }
}

impl Stage0Section {
    pub(crate) fn call_bounds(&self) -> Bounds {
        Bounds {
            floor: Duration::from_millis(self.call_budget_floor_ms),
            ceiling: Duration::from_millis(self.call_budget_ms),
        }
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience {
            pause_after: Duration::from_secs(self.pause_without_viewer_s),
            end_after: Duration::from_secs(self.end_without_viewer_s),
        }
    }
}

impl ServiceConfig for Config {
    const DOCS: &'static [(&'static str, &'static str)] = &[
        ("model.name", "tiny, demo, wan-1.3b or wan-14b"),
        ("model.weights", "synthetic:SEED, or the path of a checkpoint folder"),
        SIZES,
        ("device.kind", "auto, cpu or cuda:N"),
        ("device.threads", "torch threads of a session's chunk loop"),
        CUDA_LIBRARIES,
        MEMORY_LIMIT,
        ("stage0.max_sessions", "sessions at a time; the mesh may allow fewer"),
        ("stage0.pause_without_viewer_s", "a session that nobody watches pauses after this long"),
        ("stage0.end_without_viewer_s", "and ends after this long"),
        ("stage0.min_bitrate_kbps", "least bitrate that an encoder is set to"),
        ("stage0.max_bitrate_kbps", "highest bitrate that an encoder is set to"),
        (
            "stage0.call_budget_ms",
            "budget of a mesh call until 8 were measured, and the most it may have ever after",
        ),
        (
            "stage0.call_budget_floor_ms",
            "least budget of a mesh call; between both it is 4 times the 99th percentile",
        ),
        ("stage0.recovery_s", "how long a session waits for a mesh that is gone"),
    ];

    fn common(&self) -> &Common {
        &self.common
    }

    fn validate(&self, provenance: &Provenance) -> Result<(), ConfigError> {
        let at = |key: &'static str| move |e: Error| provenance.refuse(key, e.message);
        self.model.named().map_err(at("model.name"))?;
        self.model.config().map_err(at("model.sizes"))?;
        self.model.weights().map_err(at("model.weights"))?;
        self.device.resolve().map_err(at("device.kind"))?;
        let stage0 = &self.stage0;
        if stage0.max_sessions == 0 {
            return Err(provenance.refuse("stage0.max_sessions", "0: at least 1 is needed"));
        }
        if self.device.threads == 0 {
            return Err(provenance.refuse("device.threads", "0: at least 1 is needed"));
        }
        if stage0.end_without_viewer_s < stage0.pause_without_viewer_s {
            let (end, pause) = (stage0.end_without_viewer_s, stage0.pause_without_viewer_s);
            let text = format!("{end}: at least stage0.pause_without_viewer_s ({pause}) is needed");
            return Err(provenance.refuse("stage0.end_without_viewer_s", text));
        }
        if stage0.min_bitrate_kbps == 0 || stage0.min_bitrate_kbps > stage0.max_bitrate_kbps {
            let (min, max) = (stage0.min_bitrate_kbps, stage0.max_bitrate_kbps);
            let text = format!("{min}: 1 to stage0.max_bitrate_kbps ({max}) is allowed");
            return Err(provenance.refuse("stage0.min_bitrate_kbps", text));
        }
        if stage0.call_budget_floor_ms == 0 || stage0.call_budget_floor_ms > stage0.call_budget_ms {
            let (floor, initial) = (stage0.call_budget_floor_ms, stage0.call_budget_ms);
            let text = format!("{floor}: 1 to stage0.call_budget_ms ({initial}) is allowed");
            return Err(provenance.refuse("stage0.call_budget_floor_ms", text));
        }
        Ok(())
    }

    fn memory(&self) -> Result<String, ConfigError> {
        let (sessions, limit) = (self.stage0.max_sessions, self.device.memory_limit());
        let checked = self.model.config().and_then(|model| {
            let device = self.device.resolve()?.device;
            engine::check_stage0(&model, sessions, device, limit)
        });
        checked.map_err(|e| ConfigError::new("device", e.message))
    }
}
