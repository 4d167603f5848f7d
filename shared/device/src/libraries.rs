//! The CUDA half of libtorch: found, opened once, and asked how many devices it sees.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// The driver comes first: without it nothing else need be opened, and the others are half a gigabyte.
const DRIVER: &str = "libcuda.so.1";
/// In this order; the second one needs the first.
const TORCH: [&str; 2] = ["libc10_cuda.so", "libtorch_cuda.so"];
/// libtorch's door to NVRTC, whose own parts are found on its path alone. Kernels are made without it or not at all, so
/// that it is missing is told when they are.
const COMPILER: &str = "libcaffe2_nvrtc.so";
/// What stands beside them in the same folder.
const LIBTORCH: &str = "libtorch_cpu.so";

/// Number of devices, at least 1; else what is missing and where it was looked for.
pub(crate) fn devices(folder: Option<&Path>) -> Result<usize, String> {
    static OPENED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = OPENED.get_or_init(|| open(folder)).as_ref().map_err(Clone::clone)?;
    match usize::try_from(tch::Cuda::device_count()) {
        Ok(count) if count > 0 && tch::Cuda::is_available() => Ok(count),
        _ => Err(format!(
            "the CUDA libraries of {} see no device: check `nvidia-smi` and CUDA_VISIBLE_DEVICES",
            folder.display()
        )),
    }
}

fn open(folder: Option<&Path>) -> Result<PathBuf, String> {
    keep(Path::new(DRIVER)).map_err(|error| format!("no NVIDIA driver on the library path: {error}"))?;
    let (folder, whose) = match folder {
        Some(folder) => (folder.to_owned(), "device.cuda_libraries"),
        None => (beside_libtorch()?, "where libtorch is"),
    };
    for name in TORCH {
        keep(&folder.join(name)).map_err(|error| {
            format!(
                "{name} cannot be opened in {} ({whose}): {error}; `cargo xtask setup --cuda` fetches it and what it needs",
                folder.display()
            )
        })?;
    }
    let _ = keep(&folder.join(COMPILER));
    Ok(folder)
}

/// Opens a library for the rest of the process, its symbols visible to all.
fn keep(path: &Path) -> Result<(), String> {
    // SAFETY: running the initialisers of a library is what is asked for; these are NVIDIA's and libtorch's own, made
    // to be opened so.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    library.map(std::mem::forget).map_err(|error| {
        // What the loader said is the cause; the error itself names only the call.
        error.source().map_or_else(|| error.to_string(), ToString::to_string)
    })
}

/// Folder of the libtorch that this process has loaded, links resolved.
fn beside_libtorch() -> Result<PathBuf, String> {
    let maps = fs::read_to_string("/proc/self/maps").map_err(|e| format!("/proc/self/maps: {e}"))?;
    folder_in(&maps).ok_or_else(|| format!("no {LIBTORCH} is loaded"))
}

fn folder_in(maps: &str) -> Option<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let libtorch = paths.into_iter().find(|path| path.file_name().is_some_and(|name| name == LIBTORCH))?;
    libtorch.parent().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_libtorch_is_read_off_the_memory_map() {
        let maps = "7f00-7f01 r--p 00000000 08:01 42  /usr/lib/libc.so.6\n\
                    7f02-7f03 r-xp 00000000 00:00 0 \n\
                    7f04-7f05 r--p 00000000 08:01 43  /a folder/torch/lib/libtorch_cpu.so\n";
        assert_eq!(folder_in(maps), Some(PathBuf::from("/a folder/torch/lib")));
        assert_eq!(folder_in("7f00-7f01 r--p 00000000 08:01 42  /usr/lib/libc.so.6"), None);
    }

    #[test]
    fn this_process_has_libtorch_and_its_folder_is_found() {
        // The linker keeps libtorch only where it is used.
        let _ = tch::get_num_threads();
        let folder = beside_libtorch().unwrap();
        assert!(folder.join(LIBTORCH).is_file(), "{}", folder.display());
    }

    #[test]
    fn a_library_that_is_missing_is_named_with_its_path() {
        let error = keep(Path::new("/nowhere/libc10_cuda.so")).unwrap_err();
        assert!(error.contains("/nowhere/libc10_cuda.so"), "{error}");
    }
}
