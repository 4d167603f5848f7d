//! What a cell must not leave behind: processes and shared memory. Read from `/proc` and `/dev/shm`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::process::MARK;

/// Segments of kinemesh start with this.
const PREFIX: &str = "kinemesh-";
const SHARED_MEMORY: &str = "/dev/shm";

/// Living processes that were started for the cell in `dir`, by it or by one of its processes.
pub(crate) fn processes_of(dir: &Path) -> BTreeSet<u32> {
    let wanted = format!("{MARK}={}", dir.display());
    let marked = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
    };
    processes().filter(marked).collect()
}

/// Segments that have a name and that no process has mapped: nobody will ever take them away but a later sweep.
#[must_use]
pub fn unmapped_memory() -> BTreeSet<String> {
    let entries = fs::read_dir(SHARED_MEMORY).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut named: BTreeSet<String> = names.filter(|name| name.starts_with(PREFIX)).collect();
    for pid in processes() {
        let mapped = mapped_memory(pid);
        named.retain(|name| !mapped.contains(name));
    }
    named
}

/// Segments that a process has mapped, with a name or without.
#[must_use]
pub fn mapped_memory(pid: u32) -> BTreeSet<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let start = format!("{SHARED_MEMORY}/{PREFIX}");
    let name = |line: &str| {
        let path = &line[line.find(&start)? + SHARED_MEMORY.len() + 1..];
        path.split_ascii_whitespace().next().map(str::to_owned)
    };
    maps.lines().filter_map(name).collect()
}

/// Open file descriptors of a process.
#[must_use]
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Resident memory of a process in KiB.
#[must_use]
pub fn resident_kib(pid: u32) -> u64 {
    status_kib(pid, "VmRSS:")
}

/// The most resident memory that a process has had, in KiB.
#[must_use]
pub fn peak_resident_kib(pid: u32) -> u64 {
    status_kib(pid, "VmHWM:")
}

/// Living processes whose parent is this one.
#[must_use]
pub fn children(pid: u32) -> BTreeSet<u32> {
    let parent = Some(pid.to_string());
    processes().filter(|child| status(*child, "PPid:") == parent && lives(*child)).collect()
}

/// Whether there is such a process, and it is more than an exit code that nobody has asked for.
#[must_use]
pub fn lives(pid: u32) -> bool {
    status(pid, "State:").is_some_and(|state| state != "Z")
}

fn status_kib(pid: u32, field: &str) -> u64 {
    status(pid, field).and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// First word of a line of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_ascii_whitespace().next().map(str::to_owned)
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
