//! What the operating system knows of this process.

/// Resident memory in bytes; 0 where the system does not tell.
#[must_use]
pub fn rss_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    // SAFETY: sysconf has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages * u64::try_from(page).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_knows_its_memory() {
        let mut held = vec![0_u8; 64 << 20];
        held.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        assert!(super::rss_bytes() >= held.len() as u64);
    }
}
