//! How controller and leader find the bulk tensor path they agreed on.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// POSIX shared memory, both ends on one host.
    Shm,
    /// Device memory by CUDA IPC handle, both ends on one host.
    CudaIpc,
    /// A two-rank NCCL communicator between GPUs, of one host or two.
    Nccl,
}

impl LinkKind {
    pub const ALL: [Self; 3] = [Self::Shm, Self::CudaIpc, Self::Nccl];

    /// As in messages and configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shm => "shm",
            Self::CudaIpc => "cuda-ipc",
            Self::Nccl => "nccl",
        }
    }
}

/// A ring of slots for each direction. `in` is written by the controller, `out` by the leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkDescriptor {
    pub kind: LinkKind,
    /// Name of the shared memory object. Where there is none, what the controller says to be let in.
    pub name: String,
    pub slots_in: u32,
    pub slots_out: u32,
    /// Bytes a slot holds.
    pub slot_bytes: u64,
    /// A new lease or mesh epoch always means a new link epoch and newly allocated memory.
    pub link_epoch: u64,
    /// Of a link that can be between hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meeting: Option<LinkMeeting>,
}

/// Where the two ends of a link meet that share no memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkMeeting {
    /// `host:port` at which the leader waits for the controller.
    pub address: String,
    /// What carries the tensors is found by: NCCL's unique id.
    #[serde(with = "serde_bytes")]
    pub rendezvous: Vec<u8>,
}
