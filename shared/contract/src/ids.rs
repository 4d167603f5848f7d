//! Every id is its own type, so that an epoch cannot stand where a call id is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::error::{Error, Reason};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl $name {
            /// The id after this one. Counters never wrap: 2^32 ranks or 2^64 calls do not happen.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            #[must_use]
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                text.parse().map(Self).map_err(|_| {
                    Error::new(Reason::BadField, format!("{text:?} is not an id: a UUID is expected"))
                })
            }
        }
    };
}

uuid_id!(
    /// One viewer's stream.
    SessionId
);
uuid_id!(
    /// One life of one process.
    InstanceId
);
counter!(
    /// Identity of one formation of the mesh: the revision of the JetStream key `leader.{cell}`.
    MeshEpoch, u64
);
counter!(
    /// Identity of one continuous KV-cache history of a session; bumped by every hard cut.
    CacheEpoch, u64
);
counter!(
    /// Strictly increasing per lease over all actions.
    CallId, u64
);
counter!(
    /// Chunk number within a session's cache epoch, from 0.
    ChunkIndex, u64
);
counter!(
    /// Position in the mesh; 0 is the leader.
    Rank, u32
);
counter!(
    /// Which KV cache on the mesh belongs to the session.
    SessionSlot, u32
);
counter!(
    /// Raised each time the leader grants its lease to a controller.
    LeaseEpoch, u64
);
counter!(
    /// Identity of one life of a session; raised when it is re-created elsewhere.
    Incarnation, u64
);
counter!(
    /// Counts the writes to one link slot; a reader that expects another one has a stale or late tensor.
    Generation, u64
);
counter!(
    /// Index of a slot in a link's ring.
    LinkSlot, u32
);

impl Rank {
    pub const LEADER: Self = Self(0);
}

/// Number of ranks in the mesh, at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct WorldSize(u32);

impl WorldSize {
    pub const ONE: Self = Self(1);

    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    pub fn ranks(self) -> impl Iterator<Item = Rank> {
        (0..self.0).map(Rank)
    }

    /// Ranks `1..world_size`.
    pub fn workers(self) -> impl Iterator<Item = Rank> {
        (1..self.0).map(Rank)
    }
}

impl TryFrom<u32> for WorldSize {
    type Error = Error;
    fn try_from(n: u32) -> Result<Self, Error> {
        if n == 0 {
            return Err(Error::new(Reason::BadField, "world_size is 0: at least 1 is needed"));
        }
        Ok(Self(n))
    }
}

impl From<WorldSize> for u32 {
    fn from(size: WorldSize) -> Self {
        size.0
    }
}

impl fmt::Display for WorldSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Name of a cell: `[a-z0-9-]`, 1 to 32 characters, so that it is one NATS subject token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CellId(String);

impl CellId {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for CellId {
    fn default() -> Self {
        Self("cell0".to_owned())
    }
}

impl TryFrom<String> for CellId {
    type Error = Error;
    fn try_from(name: String) -> Result<Self, Error> {
        let token = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 32 || !name.chars().all(token) {
            return Err(Error::new(
                Reason::BadField,
                format!("cell {name:?}: 1 to 32 characters out of a-z, 0-9 and '-' are allowed"),
            ));
        }
        Ok(Self(name))
    }
}

impl FromStr for CellId {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self, Error> {
        Self::try_from(name.to_owned())
    }
}

impl From<CellId> for String {
    fn from(cell: CellId) -> Self {
        cell.0
    }
}

impl fmt::Display for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// SHA-256 of some content, as 64 lower-case hexadecimal characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hex::encode(hash.finalize()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 8 bytes, for a collective comparison of digests between ranks.
    #[must_use]
    pub fn prefix(&self) -> u64 {
        u64::from_str_radix(self.0.get(..16).unwrap_or_default(), 16).unwrap_or_default()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
