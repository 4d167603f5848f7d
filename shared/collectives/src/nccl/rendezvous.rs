use cudarc::nccl::sys::ncclUniqueId;

use super::communicator;
use crate::CollectiveError;

const MAGIC: &[u8; 4] = b"KMN1";
const ID_BYTES: usize = 128;

/// NCCL's unique id of a group, with its world size. The process that made it serves it until the group has formed.
#[derive(Clone, Debug)]
pub struct Rendezvous {
    id: [u8; ID_BYTES],
    world_size: u32,
}

impl Rendezvous {
    /// # Errors
    /// `Io` when NCCL cannot be opened, or has no network interface to listen on.
    pub fn create(world_size: u32) -> Result<Self, CollectiveError> {
        super::available()?;
        check_world(world_size)?;
        let id = communicator::unique_id()?;
        Ok(Self { id: id.internal.map(|byte| byte as u8), world_size })
    }

    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [MAGIC, &self.world_size.to_le_bytes()[..], &self.id].concat()
    }

    pub(crate) fn is_meant_by(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// # Errors
    /// `Io` when the bytes are not those of [`Rendezvous::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CollectiveError> {
        let bad = || CollectiveError::Io(format!("{} bytes that are not an NCCL rendezvous", bytes.len()));
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(bad)?;
        let (world, id) = rest.split_first_chunk::<4>().ok_or_else(bad)?;
        let world_size = u32::from_le_bytes(*world);
        check_world(world_size)?;
        Ok(Self { id: id.try_into().map_err(|_| bad())?, world_size })
    }

    #[must_use]
    pub fn world_size(&self) -> u32 {
        self.world_size
    }

    pub(super) fn id(&self) -> ncclUniqueId {
        ncclUniqueId { internal: self.id.map(|byte| byte as core::ffi::c_char) }
    }
}

fn check_world(world_size: u32) -> Result<(), CollectiveError> {
    match world_size {
        1.. if i32::try_from(world_size).is_ok() => Ok(()),
        _ => Err(CollectiveError::Io(format!("world size is {world_size}: 1 to {} are allowed", i32::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_as_they_went_and_nothing_else_is_taken() {
        let made = Rendezvous { id: std::array::from_fn(|i| i as u8 ^ 0xa5), world_size: 3 };
        let bytes = made.to_bytes();
        let read = Rendezvous::from_bytes(&bytes).unwrap();
        assert_eq!((read.id, read.world_size), (made.id, 3));
        let mut nobody = bytes.clone();
        nobody[4..8].fill(0);
        for bad in [&bytes[1..], &bytes[..bytes.len() - 1], b"KML1", &nobody] {
            assert!(matches!(Rendezvous::from_bytes(bad), Err(CollectiveError::Io(_))), "{bad:?}");
        }
    }
}
