//! A POSIX shared memory segment: named while peers still have to find it, mapped by each of them, gone with the last.
//!
//! What lies in it is up to the caller: this crate gives bounds-checked places (atomics and spans of bytes) and sees to
//! it that no segment outlives the processes that made it.

mod orphans;

use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fd::OwnedFd;
use rustix::fs::{FallocateFlags, FlockOperation, Mode, fallocate, fcntl_lock, flock, fstat, ftruncate};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::shm;

pub use crate::orphans::remove_orphans;

/// Longest name, in bytes.
pub const MAX_NAME: usize = 128;

/// Names are random, so a second try only ever follows a sweep that met the segment before its lock was taken.
const CREATE_TRIES: u32 = 8;

/// A mapping of the segment into this process.
#[derive(Debug)]
pub struct Segment {
    base: NonNull<u8>,
    len: usize,
    name: String,
    /// Holds a lock for as long as this process lives. The creator's tells [`remove_orphans`] that somebody still answers
    /// for the name; another process's, of another kind, tells the creator that the segment is in use.
    lock: OwnedFd,
    creator: bool,
}

// SAFETY: the mapping is valid in every thread until drop; what is in it is reached through atomics, or through spans
// whose users order their accesses with those atomics.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Creates `<prefix>-<random>` with `len` zero bytes, mode 0600. The memory is reserved here, so that a full
    /// memory file system is this error and not a signal later.
    ///
    /// # Errors
    /// `InvalidInput` for a name or length that is not allowed; `StorageFull` and what else the system says.
    pub fn create(prefix: &str, len: usize) -> io::Result<Self> {
        for _ in 0..CREATE_TRIES {
            let name = format!("{prefix}-{}", hex::encode(rand::random::<[u8; 16]>()));
            check(&name, len)?;
            let flags = shm::OFlags::CREATE | shm::OFlags::EXCL | shm::OFlags::RDWR;
            let fd = shm::open(path(&name), flags, Mode::RUSR | Mode::WUSR)?;
            let swept = match flock(&fd, FlockOperation::NonBlockingLockShared) {
                Ok(()) => fstat(&fd)?.st_nlink == 0,
                Err(Errno::WOULDBLOCK) => true,
                Err(error) => return Err(unlink_after(&name, error)),
            };
            if swept {
                continue;
            }
            let size = len as u64;
            let base = ftruncate(&fd, size)
                .and_then(|()| fallocate(&fd, FallocateFlags::empty(), 0, size))
                .and_then(|()| map(&fd, len))
                .map_err(|error| unlink_after(&name, error))?;
            return Ok(Self { base, len, name, lock: fd, creator: true });
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("{prefix}: every new segment was swept away"),
        ))
    }

    /// Maps a segment that another process created with exactly `len` bytes.
    ///
    /// # Errors
    /// `NotFound` when the name is gone; `InvalidInput` for a name that is not allowed; `InvalidData` when the length
    /// differs.
    pub fn open(name: &str, len: usize) -> io::Result<Self> {
        check(name, len)?;
        let fd = shm::open(path(name), shm::OFlags::RDWR, Mode::empty())?;
        let found = fstat(&fd)?.st_size;
        if usize::try_from(found) != Ok(len) {
            let text = format!("segment {name} has {found} bytes: {len} are expected");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        fcntl_lock(&fd, FlockOperation::NonBlockingLockShared)?;
        Ok(Self { base: map(&fd, len)?, len, name: name.to_owned(), lock: fd, creator: false })
    }

    /// Asked by the creator: whether another process has it open. One that was killed has not.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        let alone = fcntl_lock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if alone {
            // Only ever taken to see whether it can be.
            let _ = fcntl_lock(&self.lock, FlockOperation::NonBlockingUnlock);
        }
        !alone
    }

    /// Without the leading slash.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the name away: who has the segment mapped keeps it, nobody finds it any more. Twice does no harm.
    pub fn unlink(&self) {
        // Gone already is what was asked for; nothing else can fail for the owner of the name.
        let _ = shm::unlink(path(&self.name));
    }

    /// # Panics
    /// When the word is not aligned or not inside: a defect of the caller's layout.
    #[must_use]
    pub fn u32_at(&self, offset: usize) -> &AtomicU32 {
        let at = self.span(offset, size_of::<AtomicU32>()).cast::<u32>();
        assert!(at.is_aligned(), "offset {offset} is not aligned for a 32-bit word");
        // SAFETY: in bounds, aligned, mapped as long as `self` lives; every process reaches it as an atomic.
        unsafe { AtomicU32::from_ptr(at) }
    }

    /// # Panics
    /// As [`Segment::u32_at`].
    #[must_use]
    pub fn u64_at(&self, offset: usize) -> &AtomicU64 {
        let at = self.span(offset, size_of::<AtomicU64>()).cast::<u64>();
        assert!(at.is_aligned(), "offset {offset} is not aligned for a 64-bit word");
        // SAFETY: as in `u32_at`.
        unsafe { AtomicU64::from_ptr(at) }
    }

    /// The first of `len` bytes at `offset`. Accesses through it must be ordered by the atomics.
    ///
    /// # Panics
    /// When the span is not inside: a defect of the caller's layout.
    #[must_use]
    pub fn span(&self, offset: usize, len: usize) -> *mut u8 {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "{len} bytes at {offset} are not inside a segment of {}", self.len);
        // SAFETY: `offset` is inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.creator {
            self.unlink();
        }
        // SAFETY: base and len are the mapping made in `map`; no reference outlives `self`.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

fn map(fd: &OwnedFd, len: usize) -> Result<NonNull<u8>, Errno> {
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let at = unsafe { mmap(null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0) }?;
    NonNull::new(at.cast()).ok_or(Errno::NOMEM)
}

fn unlink_after(name: &str, error: Errno) -> io::Error {
    let _ = shm::unlink(path(name));
    error.into()
}

fn path(name: &str) -> String {
    format!("/{name}")
}

/// Names come in messages: anything but a plain file name of our alphabet is refused before the system sees it.
fn check(name: &str, len: usize) -> io::Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
        let text =
            format!("segment name {name:?}: 1 to {MAX_NAME} characters out of a-z, 0-9 and '-' are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    if len == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a segment of 0 bytes cannot be mapped"));
    }
    Ok(())
}
