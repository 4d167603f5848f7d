use segment::Segment;

use super::layout::{Layout, MAX_WORLD};
use crate::CollectiveError;

const PREFIX: &str = "kinemesh-loopback";
const MAGIC: &[u8; 4] = b"KML1";

/// Where the ranks of one group meet: made by one process, handed to the others as opaque bytes.
///
/// The maker keeps it until its own rank is connected; dropped earlier, the group cannot form any more.
#[derive(Debug)]
pub struct Rendezvous {
    name: String,
    world_size: u32,
    /// The maker's mapping, whose drop takes the name away if the group never formed.
    _made: Option<Segment>,
}

impl Rendezvous {
    /// Makes the shared memory for `world_size` ranks (about 0.5 MiB each).
    ///
    /// # Errors
    /// `Io` for a world size beyond 1 to 64, or when the memory cannot be had.
    pub fn create(world_size: u32) -> Result<Self, CollectiveError> {
        check_world(world_size)?;
        let io = |error: std::io::Error| CollectiveError::Io(format!("loopback segment: {error}"));
        // What a killed maker left behind is memory; failing to list it fails nobody.
        let _ = segment::remove_orphans(PREFIX);
        let segment = Segment::create(PREFIX, Layout::bytes(world_size)).map_err(io)?;
        let name = segment.name().to_owned();
        let layout = Layout::new(segment, world_size);
        layout.format();
        Ok(Self { name, world_size, _made: Some(layout.into_segment()) })
    }

    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [MAGIC, &self.world_size.to_le_bytes()[..], self.name.as_bytes()].concat()
    }

    /// # Errors
    /// `Io` when the bytes are not those of [`Rendezvous::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CollectiveError> {
        let bad = || CollectiveError::Io(format!("{} bytes that are not a loopback rendezvous", bytes.len()));
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(bad)?;
        let (world, name) = rest.split_first_chunk::<4>().ok_or_else(bad)?;
        let name = str::from_utf8(name).map_err(|_| bad())?;
        if !name.starts_with(PREFIX) || name.len() > segment::MAX_NAME {
            return Err(bad());
        }
        let world_size = u32::from_le_bytes(*world);
        check_world(world_size)?;
        Ok(Self { name: name.to_owned(), world_size, _made: None })
    }

    #[must_use]
    pub fn world_size(&self) -> u32 {
        self.world_size
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

fn check_world(world_size: u32) -> Result<(), CollectiveError> {
    if world_size == 0 || world_size > MAX_WORLD {
        return Err(CollectiveError::Io(format!("world size is {world_size}: 1 to {MAX_WORLD} are allowed")));
    }
    Ok(())
}
