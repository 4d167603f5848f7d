//! How much memory a device has, and how much of it is free.

use std::fs;
use std::path::{Path, PathBuf};

use cudarc::driver::result::mem_get_info;
use tch::Device;

use crate::{Context, DriverFailure};

/// Why nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    #[error(transparent)]
    Driver(#[from] DriverFailure),
    #[error("{path}: {what}")]
    File { path: PathBuf, what: String },
    #[error("{0:?} is not a device that kinemesh computes on")]
    Device(Device),
}

/// Bytes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    /// What a process that starts now can have: on a CPU, caches that give way are free.
    pub free: u64,
}

impl Memory {
    /// Of a GPU, what its driver says. Of a CPU, what the kernel calls available, within what the control groups (v2)
    /// of this process allow it.
    ///
    /// # Errors
    /// The driver does not answer, or `/proc` is not what it is on Linux.
    pub fn of(device: Device) -> Result<Self, MemoryError> {
        match device {
            Device::Cuda(index) => {
                let _context = Context::of(index)?;
                let (free, total) = mem_get_info().map_err(DriverFailure::of("cuMemGetInfo"))?;
                Ok(Self { total: total as u64, free: free as u64 })
            }
            Device::Cpu => host(Path::new("/proc"), Path::new("/sys/fs/cgroup")),
            other => Err(MemoryError::Device(other)),
        }
    }

    /// The same device to someone who may use `limit` bytes of it at most.
    #[must_use]
    pub fn within(self, limit: Option<u64>) -> Self {
        let limit = limit.unwrap_or(u64::MAX);
        Self { total: self.total.min(limit), free: self.free.min(limit) }
    }
}

fn host(proc: &Path, groups: &Path) -> Result<Memory, MemoryError> {
    let path = proc.join("meminfo");
    let failed = |what: String| MemoryError::File { path: path.clone(), what };
    let text = fs::read_to_string(&path).map_err(|e| failed(e.to_string()))?;
    let of = |key: &str| value(&text, key).map(|kib| kib * 1024).ok_or_else(|| failed(format!("no {key}")));
    let mut memory = Memory { total: of("MemTotal:")?, free: of("MemAvailable:")? };
    // Each group is within all above it.
    let own = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    for group in Path::new(own).ancestors() {
        if let Some((limit, used)) = limit_and_use(&groups.join(group)) {
            memory.total = memory.total.min(limit);
            memory.free = memory.free.min(limit.saturating_sub(used));
        }
    }
    Ok(memory)
}

/// What a control group may use and does use; `None` for one without a limit.
fn limit_and_use(group: &Path) -> Option<(u64, u64)> {
    let read = |file: &str| fs::read_to_string(group.join(file)).ok();
    let limit = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    // Pages of files give way to whoever needs memory, so they are as good as free.
    let stat = read("memory.stat").unwrap_or_default();
    let files = ["inactive_file ", "active_file "].iter().filter_map(|key| value(&stat, key)).sum();
    Some((limit, used.saturating_sub(files)))
}

/// The number of the line that begins with `key`.
fn value(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A machine of 16 GiB, 12 of them free, with this process in the group `a/b`.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        write(
            &root,
            "proc/meminfo",
            "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:   12582912 kB\n",
        );
        write(&root, "proc/self/cgroup", "4:memory:/old\n0::/a/b\n");
        root
    }

    fn write(root: &tempfile::TempDir, file: &str, text: &str) {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn seen(root: &tempfile::TempDir) -> Memory {
        host(&root.path().join("proc"), &root.path().join("cgroup")).unwrap()
    }

    #[test]
    fn without_a_limit_the_machine_is_what_there_is() {
        let root = machine();
        assert_eq!(seen(&root), Memory { total: 16 * GIB, free: 12 * GIB });
        write(&root, "cgroup/a/b/memory.max", "max\n");
        write(&root, "cgroup/a/b/memory.current", "4096\n");
        assert_eq!(seen(&root), Memory { total: 16 * GIB, free: 12 * GIB });
    }

    #[test]
    fn the_tightest_of_the_groups_counts_and_files_in_memory_do_not() {
        let root = machine();
        write(&root, "cgroup/a/memory.max", &(8 * GIB).to_string());
        write(&root, "cgroup/a/memory.current", &(7 * GIB).to_string());
        assert_eq!(seen(&root), Memory { total: 8 * GIB, free: GIB });
        let stat = format!("anon 1\ninactive_file {}\nactive_file {}\n", 3 * GIB, GIB);
        write(&root, "cgroup/a/memory.stat", &stat);
        assert_eq!(seen(&root), Memory { total: 8 * GIB, free: 5 * GIB });
        write(&root, "cgroup/a/b/memory.max", &(2 * GIB).to_string());
        write(&root, "cgroup/a/b/memory.current", &GIB.to_string());
        assert_eq!(seen(&root), Memory { total: 2 * GIB, free: GIB });
    }

    #[test]
    fn a_limit_of_the_users_own_is_the_most() {
        let memory = Memory { total: 16 * GIB, free: 12 * GIB };
        assert_eq!(memory.within(None), memory);
        assert_eq!(memory.within(Some(4 * GIB)), Memory { total: 4 * GIB, free: 4 * GIB });
        assert_eq!(memory.within(Some(14 * GIB)), Memory { total: 14 * GIB, free: 12 * GIB });
    }

    #[test]
    fn this_machine_has_memory() {
        let memory = Memory::of(Device::Cpu).unwrap();
        assert!(memory.free > 0 && memory.free <= memory.total, "{memory:?}");
    }
}
