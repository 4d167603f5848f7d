//! From a memory map into tensors: piece by piece on several threads, and to a GPU through pinned memory, so that some pieces
//! are read while others are on their way.

use std::sync::{Mutex, PoisonError};
use std::thread;

use tch::{Device, Kind, Tensor};

use super::runs::Runs;

/// Bytes that are read at a time.
const PIECE: usize = 8 << 20;
/// Threads that read. Pinned memory is a piece for each.
const READERS: usize = 8;

/// Why bytes did not arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum StagingError {
    #[error(transparent)]
    Torch(#[from] tch::TchError),
    #[error(transparent)]
    Extra(#[from] torch_extra::ExtraError),
}

/// The way to a device.
pub(super) struct Staging {
    device: Device,
    piece: usize,
    readers: usize,
    /// Pinned memory that no thread uses now.
    buffers: Mutex<Vec<Tensor>>,
}

impl Staging {
    pub(super) fn to(device: Device) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self { device, piece: PIECE, readers: cores.min(READERS), buffers: Mutex::default() }
    }

    /// What `runs`, in bytes, are of `values`: bytes `[runs.total()]` on the device.
    ///
    /// # Errors
    /// The device has no memory for it, or memory cannot be pinned.
    pub(super) fn copy(&self, values: &[u8], runs: Runs) -> Result<Tensor, StagingError> {
        let all = Tensor::f_empty([runs.total() as i64], (Kind::Uint8, self.device))?;
        let pieces = all.f_split(self.piece as i64, 0)?;
        let readers = self.readers.min(pieces.len());
        let pieces = Mutex::new((0..).step_by(self.piece).zip(pieces));
        let read = || -> Result<(), StagingError> {
            let buffer = self.buffer()?;
            loop {
                let next = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((from, mut piece)) = next else { break };
                let Some(buffer) = &buffer else {
                    runs.gather(values, from, bytes(&mut piece));
                    continue;
                };
                let mut staged = buffer.f_narrow(0, 0, piece.size()[0])?;
                runs.gather(values, from, bytes(&mut staged));
                // Waits until it is there, so that the buffer is free.
                piece.f_copy_(&staged)?;
            }
            self.buffers.lock().unwrap_or_else(PoisonError::into_inner).extend(buffer);
            Ok(())
        };
        thread::scope(|scope| {
            let others: Vec<_> = (1..readers).map(|_| scope.spawn(read)).collect();
            let own = read();
            others
                .into_iter()
                .map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .fold(own, Result::and)
        })?;
        Ok(all)
    }

    /// Pinned memory for a piece; none for a CPU, whose pieces are read to where they stay.
    fn buffer(&self) -> Result<Option<Tensor>, StagingError> {
        if !self.device.is_cuda() {
            return Ok(None);
        }
        if let Some(free) = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(Some(free));
        }
        let bytes = Tensor::f_zeros([self.piece as i64], (Kind::Uint8, Device::Cpu))?;
        Ok(Some(torch_extra::pinned(&bytes)?))
    }
}

/// The memory of a contiguous tensor of bytes on the CPU.
fn bytes(tensor: &mut Tensor) -> &mut [u8] {
    debug_assert!(tensor.device() == Device::Cpu && tensor.kind() == Kind::Uint8 && tensor.is_contiguous());
    // SAFETY: so many bytes are the tensor's, and as long as they are borrowed nobody else has this part of them: pieces do
    // not overlap, and a buffer is one thread's.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_up_the_slice_whoever_reads_them() {
        let values: Vec<u8> = (0..97 * 11).map(|i| (i % 251) as u8).collect();
        for (dim, start, len) in [(0, 0, 97), (1, 3, 5), (0, 50, 47)] {
            let runs = Runs::of(&[97, 11], dim, start, len);
            let mut expected = vec![0; runs.total()];
            runs.gather(&values, 0, &mut expected);
            for (piece, readers) in [(7, 3), (64, 2), (1 << 20, 4)] {
                let staging = Staging { piece, readers, ..Staging::to(Device::Cpu) };
                let copied: Vec<u8> = staging.copy(&values, runs).unwrap().try_into().unwrap();
                assert_eq!(copied, expected, "{runs:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        let error = Staging::to(Device::Cuda(0)).copy(&[1, 2, 3], Runs::whole(3)).unwrap_err();
        assert!(!error.to_string().is_empty());
    }

    #[test]
    fn nothing_is_copied_of_an_empty_slice() {
        let copied = Staging::to(Device::Cpu).copy(&[], Runs::whole(0)).unwrap();
        assert_eq!(copied.size(), [0]);
    }
}
