//! Pinned wheels, fetched by pip with their hashes and unpacked into `.kinemesh/site`.
//!
//! The folder appears whole or not at all: pip fills a staging folder, which is then renamed. Its stamp holds the
//! requirements that it was made from, so a second run fetches nothing and a changed pin fetches again.

use std::ffi::OsString;
use std::fs;
use std::io::IsTerminal;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::python;
use crate::command::{check, die_with_parent, display, run};
use crate::console::mebibytes;
use crate::layout::Layout;

const STAMP: &str = "requirements.stamp";
/// The wheels are those of this Python, whatever the machine's own is: only their libraries are used.
const PYTHON_TAG: [&str; 6] = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"];
/// Newest glibc 2.x that a wheel may ask for. pip takes tags literally, so every older one is named too.
const NEWEST_GLIBC: u32 = 28;
const OLDEST_GLIBC: u32 = 5;
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// # Errors
/// If pip fails, or what it fetched is not what it should be.
pub(super) fn fetch(layout: &Layout, cuda: bool) -> Result<()> {
    let site = layout.site();
    let present = fs::read_to_string(site.join(STAMP)).unwrap_or_default();
    let full = stamp(layout, true)?;
    let wanted = if cuda { full.clone() } else { stamp(layout, false)? };
    // With the CUDA libraries is more than without.
    if present == wanted || present == full {
        return Ok(());
    }
    let python = python::environment(layout)?;
    let staging = layout.private().join("site.new");
    let temporary = layout.private().join("tmp");
    for folder in [&staging, &temporary] {
        remove(folder)?;
    }
    fs::create_dir_all(&temporary)?;
    println!(
        "fetching libtorch and nats-server{} into .kinemesh",
        if cuda { ", with the CUDA libraries" } else { "" }
    );
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input"])
        .args(["--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile"])
        .args(PYTHON_TAG)
        .args(["--abi", "none"])
        .args(platforms())
        .arg("--target")
        .arg(&staging)
        .env("TMPDIR", &temporary);
    for file in requirement_files(layout, cuda) {
        pip.arg("-r").arg(file);
    }
    run_with_progress(&mut pip, &[&temporary, &staging])?;
    verify(&staging)?;
    if cuda {
        link_nccl(&staging)?;
    }
    fs::write(staging.join(STAMP), wanted)?;
    replace(&staging, &site)?;
    remove(&temporary)
}

fn requirement_files(layout: &Layout, cuda: bool) -> Vec<PathBuf> {
    let mut files = vec![layout.requirements("runtime.txt")];
    if cuda {
        files.push(layout.requirements("cuda.txt"));
    }
    files
}

fn stamp(layout: &Layout, cuda: bool) -> Result<String> {
    let mut text = String::new();
    for file in requirement_files(layout, cuda) {
        text += &fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    Ok(text)
}

fn platforms() -> Vec<OsString> {
    let arch = std::env::consts::ARCH;
    let tags = (OLDEST_GLIBC..=NEWEST_GLIBC).rev().map(|glibc| format!("manylinux_2_{glibc}_{arch}"));
    let legacy = ["manylinux2014", "manylinux2010", "manylinux1"].map(|tag| format!("{tag}_{arch}"));
    tags.chain(legacy).flat_map(|tag| ["--platform".into(), tag.into()]).collect()
}

/// On a terminal pip draws its own bar; elsewhere the growing size is printed every few seconds.
fn run_with_progress(pip: &mut Command, folders: &[&Path]) -> Result<()> {
    if std::io::stdout().is_terminal() {
        return run(pip);
    }
    let what = display(pip);
    pip.args(["--progress-bar", "off"]);
    die_with_parent(pip, libc::SIGTERM);
    let mut child = pip.spawn().with_context(|| format!("cannot start `{what}`"))?;
    let mut last = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return check(&what, status);
        }
        if last.elapsed() >= PROGRESS_EVERY {
            last = Instant::now();
            println!("  {} on disk", mebibytes(folders.iter().map(|folder| size(folder)).sum()));
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Bytes of all files below; what vanishes meanwhile counts as nothing.
fn size(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

fn verify(site: &Path) -> Result<()> {
    let headers = "nvidia/cu13/include/crt";
    for path in
        ["torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/include", headers, "bin/nats-server"]
    {
        if !site.join(path).exists() {
            bail!("the fetched wheels lack {path}");
        }
    }
    Ok(())
}

/// NCCL is looked for without its version, in the folder that the binaries search.
fn link_nccl(site: &Path) -> Result<()> {
    let versioned = site.join("nvidia/nccl/lib/libnccl.so.2");
    if !versioned.exists() {
        bail!("the fetched wheels lack nvidia/nccl/lib/libnccl.so.2");
    }
    symlink("../../nvidia/nccl/lib/libnccl.so.2", site.join("torch/lib/libnccl.so"))?;
    Ok(())
}

fn replace(new: &Path, current: &Path) -> Result<()> {
    let old = current.with_extension("old");
    remove(&old)?;
    if current.exists() {
        fs::rename(current, &old)?;
    }
    fs::rename(new, current)?;
    remove(&old)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{STAMP, fetch, replace, size, stamp};
    use crate::layout::Layout;

    /// A checkout whose pins are `pins`, with what was fetched for `fetched`.
    fn checkout(pins: &str, fetched: &str) -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(dir.path().to_owned()));
        for (file, text) in [("runtime.txt", pins), ("cuda.txt", "")] {
            let path = layout.requirements(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::create_dir_all(layout.site()).unwrap();
        fs::write(layout.site().join(STAMP), fetched).unwrap();
        (dir, layout)
    }

    #[test]
    fn a_second_run_fetches_nothing() {
        let (_dir, layout) = checkout("torch==1", "torch==1");
        fetch(&layout, false).unwrap();
        assert!(!layout.venv().exists(), "pip's environment was made");
    }

    #[test]
    fn a_changed_pin_is_another_stamp() {
        let (_dir, layout) = checkout("torch==2", "torch==1");
        assert_ne!(stamp(&layout, false).unwrap(), fs::read_to_string(layout.site().join(STAMP)).unwrap());
    }

    #[test]
    fn a_new_folder_takes_the_place_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let (new, current) = (dir.path().join("site.new"), dir.path().join("site"));
        for (folder, text) in [(&new, "new"), (&current, "old")] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("stamp"), text).unwrap();
        }

        replace(&new, &current).unwrap();

        assert_eq!(fs::read_to_string(current.join("stamp")).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn size_counts_files_at_every_depth() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b"), [0; 10]).unwrap();
        fs::write(dir.path().join("c"), [0; 5]).unwrap();

        assert_eq!(size(dir.path()), 15);
    }
}
