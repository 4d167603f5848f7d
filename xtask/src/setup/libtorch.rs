//! `LIBTORCH`: a folder of links into the wheel, with just the libraries that a CPU binary links. Linking against the
//! wheel's own folder would make every binary need CUDA libraries to start.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

use crate::layout::Layout;

const LINKS: [(&str, &str); 6] = [
    ("include", "../site/torch/include"),
    // CUDA's, which libtorch's own include.
    ("include-cuda", "../site/nvidia/cu13/include"),
    ("lib/libtorch_cpu.so", "../../site/torch/lib/libtorch_cpu.so"),
    ("lib/libc10.so", "../../site/torch/lib/libc10.so"),
    ("lib/libgomp.so.1", "../../site/torch/lib/libgomp.so.1"),
    // The crate asks for -ltorch; the wheel's libtorch.so would pull in the CUDA libraries.
    ("lib/libtorch.so", "libtorch_cpu.so"),
];

/// # Errors
/// If a link cannot be made.
pub(super) fn link(layout: &Layout) -> Result<()> {
    let libtorch = layout.libtorch();
    fs::create_dir_all(libtorch.join("lib"))?;
    for (name, target) in LINKS {
        let path = libtorch.join(name);
        place(&path, target).with_context(|| format!("cannot link {}", path.display()))?;
    }
    Ok(())
}

/// An unchanged link is left alone, so that cargo sees nothing new.
fn place(path: &Path, target: &str) -> std::io::Result<()> {
    match fs::read_link(path) {
        Ok(present) if present == Path::new(target) => return Ok(()),
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    symlink(target, path)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::{LINKS, link};
    use crate::layout::Layout;

    #[test]
    fn links_are_made_once_and_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(dir.path().to_path_buf()));

        link(&layout).unwrap();
        let broken = layout.libtorch().join("lib/libc10.so");
        fs::remove_file(&broken).unwrap();
        std::os::unix::fs::symlink("elsewhere", &broken).unwrap();
        link(&layout).unwrap();

        for (name, target) in LINKS {
            assert_eq!(fs::read_link(layout.libtorch().join(name)).unwrap(), Path::new(target));
        }
    }
}
