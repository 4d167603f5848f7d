use std::{fs, io};

use rustix::fs::{FlockOperation, Mode, flock};
use rustix::shm;

/// Where Linux keeps the names of POSIX shared memory.
const NAMES: &str = "/dev/shm";

/// Unlinks every segment named `<prefix>-...` whose creator is gone (killed before its peers had it mapped), and says
/// how many. A living creator's lock is seen across containers too, where a process id would say nothing.
///
/// # Errors
/// When the names cannot be listed. A segment that is not ours to open is left alone.
pub fn remove_orphans(prefix: &str) -> io::Result<usize> {
    let start = format!("{prefix}-");
    let mut removed = 0;
    for entry in fs::read_dir(NAMES)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(&start)) else { continue };
        let path = format!("/{name}");
        let Ok(fd) = shm::open(&path, shm::OFlags::RDWR, Mode::empty()) else { continue };
        if flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() && shm::unlink(&path).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}
