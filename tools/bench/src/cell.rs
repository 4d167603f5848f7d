//! The cell that a benchmark of all services starts.

use anyhow::Result;
use contract::link::LinkKind;
use device::DeviceKind;
use serde_json::{Map, Value, json};
use system_tests::{Cell, CellBuilder, leftovers};
use tch::Device;
use wan::config::ModelConfig;
use xtask::outcome::Refused;
use xtask::up::MODELS;

use crate::options;
use crate::ranks::GroupOptions;

const DEVICE: &str = "KINEMESH_DEVICE__KIND";
const LINK: &str = "KINEMESH_MESH__LINK";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CellOptions {
    #[arg(long, default_value = "tiny", value_parser = clap::builder::PossibleValuesParser::new(MODELS))]
    pub(crate) model: String,
    /// `cpu` or `cuda:N`, of every service that computes.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: DeviceKind,
    /// stage 0's, if it has one of its own.
    #[arg(long)]
    stage0_device: Option<DeviceKind>,
    /// How latents get from stage 0 to the leader and back: `shm`, `cuda-ipc` through the leader's GPU, or `nccl`, which is slow
    /// where both are on one GPU.
    #[arg(long, default_value = "shm", value_parser = options::parse_link)]
    pub(crate) link: LinkKind,
    #[command(flatten)]
    pub(crate) group: GroupOptions,
}

impl CellOptions {
    /// The device of the leader.
    ///
    /// # Errors
    /// It, another rank's or stage 0's is not there, or the link cannot be had with them.
    pub(crate) fn device(&self, world_size: u16) -> Result<Device> {
        let device = options::resolve(self.device)?;
        if let (Device::Cuda(first), false) = (device, self.group.share_gpu) {
            let last = first + usize::from(world_size.saturating_sub(1));
            options::resolve_for("--world-size without --share-gpu", DeviceKind::Cuda(last))?;
        }
        let own = |kind| options::resolve_for("--stage0-device", kind);
        for end in [device, self.stage0_device.map_or(Ok(device), own)?] {
            latents::check(self.link, end).map_err(|e| Refused(format!("--link: {}", e.message)))?;
        }
        Ok(device)
    }

    /// # Errors
    /// The model has no such name, or cannot be split so.
    pub(crate) fn config(&self, world_size: u16) -> Result<ModelConfig> {
        let config = ModelConfig::named(&self.model)?;
        options::check_world_size(&config, u32::from(world_size))?;
        Ok(config)
    }

    /// That of stage 0: the leader's, unless it has one of its own.
    fn stage0(&self, leader: Device) -> DeviceKind {
        self.stage0_device.unwrap_or(match leader {
            Device::Cuda(index) => DeviceKind::Cuda(index),
            _ => DeviceKind::Cpu,
        })
    }

    /// Every rank on a GPU of its own, unless they share one.
    pub(crate) fn cell(&self, device: Device, world_size: u16) -> CellBuilder {
        let mut cell = Cell::builder().world_size(world_size).model(&self.model);
        for rank in 0..usize::from(world_size) {
            let process = if rank == 0 { "leader".to_owned() } else { format!("worker{rank}") };
            let kind = match device {
                Device::Cuda(first) if !self.group.share_gpu => DeviceKind::Cuda(first + rank),
                Device::Cuda(index) => DeviceKind::Cuda(index),
                _ => DeviceKind::Cpu,
            };
            cell = cell.env(&process, DEVICE, &kind.to_string());
            if self.group.share_gpu {
                cell = cell.env(&process, "NCCL_HOSTID", &process).env(&process, "NCCL_SOCKET_IFNAME", "lo");
            }
        }
        let stage0 = self.stage0(device);
        if self.link == LinkKind::Nccl
            && matches!((stage0, device), (DeviceKind::Cuda(a), Device::Cuda(b)) if a == b)
        {
            cell = cell.env("stage0", "NCCL_HOSTID", "stage0").env("leader", "NCCL_HOSTID", "leader");
            for process in
                ["stage0", "leader"].into_iter().filter(|_| world_size == 1 || self.group.share_gpu)
            {
                cell = cell.env(process, "NCCL_SOCKET_IFNAME", "lo");
            }
        }
        cell.env("stage0", DEVICE, &stage0.to_string()).env("leader", LINK, self.link.as_str())
    }

    pub(crate) fn conditions(&self, config: &ModelConfig, device: Device, world_size: u16) -> Value {
        json!({
            "model": config.name, "weights": weights(&config.name),
            "precision": options::name(engine::compute_kind(device)),
            "latent_frames": config.num_frame_per_block, "world_size": world_size,
            "ranks_share_a_gpu": self.group.share_gpu, "link": self.link.as_str(),
            "stage0_device": self.stage0(device).to_string(),
        })
    }
}

/// What the services of a stack are told, or their default.
fn weights(model: &str) -> String {
    let shipped = || system_tests::cell::layout().shipped_weights(model).map(|_| "shipped".to_owned());
    let own = std::env::var("KINEMESH_MODEL__WEIGHTS").ok();
    own.or_else(shipped).unwrap_or_else(|| engine::settings::ModelSection::default().weights)
}

/// MiB that each process of a cell had resident at most.
pub(crate) fn peak_mib(cell: &Cell) -> Map<String, Value> {
    let peak = |(name, pid)| (name, json!(leftovers::peak_resident_kib(pid) / 1024));
    cell.pids().into_iter().map(peak).collect()
}
