//! `cargo xtask gpu-bundle`: one folder with everything that `tests/gpu/run` needs on a machine that has a GPU and no
//! toolchain. It is laid out like a checkout, so that binaries find libtorch, and one another, as they do here.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::{self, cargo, check, display};
use crate::layout::Layout;
use crate::setup;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where to put it; made anew.
    #[arg(long, value_name = "FOLDER", default_value = ".kinemesh/gpu-bundle")]
    out: PathBuf,
}

const PROGRAMS: [&str; 6] = ["gateway", "stage0", "mesh-leader", "tp-worker", "kinemesh-bench", "xtask"];
/// Tests that can run on a device.
const TESTS: [&str; 13] = [
    "cuda_ipc",
    "golden_blend",
    "golden_dit",
    "golden_dit_generator",
    "golden_dit_stream",
    "golden_scheduler",
    "golden_text",
    "golden_tp",
    "golden_vae",
    "golden_weights",
    "gpu",
    "nccl",
    "nccl_link",
];
/// Libraries that a bare machine need not have.
const CARRIED: [&str; 1] = ["libvpx.so"];

/// # Errors
/// If set-up, a build or a copy fails.
pub fn run(layout: &Layout, options: &Options) -> Result<()> {
    setup::run(layout, setup::Options::default())?;
    let out = layout.root().join(&options.out);
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    let release = out.join("target/release");
    let mut build = cargo();
    build.current_dir(layout.root()).args(["build", "--release", "--workspace"]);
    command::run(&mut build)?;
    for program in PROGRAMS {
        let binary = layout.binaries().join(program);
        carry(&binary, &release.join(program))?;
        carry_libraries(&binary, &out.join("lib"))?;
    }
    for (name, executable) in test_binaries(layout)? {
        carry(&executable, &release.join("tests").join(name))?;
    }
    copy(&layout.nats_server(), &out.join(".kinemesh/site/bin/nats-server"))?;
    copy(&layout.nats_config(), &out.join("nats/nats-server.conf"))?;
    copy(&layout.root().join("tests/gpu/run"), &out.join("run"))?;
    let goldens = layout.root().join("shared/wan/tests/goldens");
    for entry in fs::read_dir(&goldens).with_context(|| format!("cannot read {}", goldens.display()))? {
        let path = entry?.path();
        copy(&path, &out.join("goldens").join(path.file_name().unwrap_or_default()))?;
    }
    println!("{}: carry it to the machine with the GPU and start `./run` there", out.display());
    Ok(())
}

/// Builds the test binaries; the name and file of each.
fn test_binaries(layout: &Layout) -> Result<Vec<(String, PathBuf)>> {
    let mut build = cargo();
    build
        .current_dir(layout.root())
        .args(["test", "--release", "--workspace", "--no-run", "--message-format", "json-render-diagnostics"])
        .args(TESTS.iter().flat_map(|test| ["--test", test]))
        .stdout(Stdio::piped());
    let what = display(&build);
    command::die_with_parent(&mut build, libc::SIGTERM);
    let mut child = build.spawn().with_context(|| format!("cannot start `{what}`"))?;
    let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let found = lines.map_while(Result::ok).filter_map(|line| executable(&line)).collect();
    check(&what, child.wait()?)?;
    Ok(found)
}

/// The name and file of the executable that a line of cargo's output tells of, if it is one of ours.
fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let (name, file) = (message["target"]["name"].as_str()?, message["executable"].as_str()?);
    TESTS.contains(&name).then(|| (name.to_owned(), PathBuf::from(file)))
}

/// Copies a binary without its symbols.
fn carry(from: &Path, to: &Path) -> Result<()> {
    copy(from, to)?;
    command::run(Command::new("strip").arg(to))
}

fn carry_libraries(binary: &Path, to: &Path) -> Result<()> {
    let output = Command::new("ldd").arg(binary).output().context("cannot start `ldd`")?;
    for (name, file) in libraries(&String::from_utf8_lossy(&output.stdout)) {
        if CARRIED.iter().any(|carried| name.starts_with(carried)) {
            copy(&file, &to.join(name))?;
        }
    }
    Ok(())
}

/// Name and file of each library in what `ldd` printed.
fn libraries(ldd: &str) -> Vec<(String, PathBuf)> {
    let library = |line: &str| {
        let (name, rest) = line.trim().split_once(" => ")?;
        let (file, _) = rest.rsplit_once(" (")?;
        Some((name.to_owned(), PathBuf::from(file)))
    };
    ldd.lines().filter_map(library).collect()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{executable, libraries};

    #[test]
    fn executables_are_read_off_the_messages_of_cargo() {
        let line =
            r#"{"reason":"compiler-artifact","target":{"name":"nccl"},"executable":"/t/deps/nccl-1f"}"#;
        assert_eq!(executable(line), Some(("nccl".to_owned(), PathBuf::from("/t/deps/nccl-1f"))));
        for other in [
            r#"{"target":{"name":"wan"},"executable":"/t/deps/wan-1f"}"#,
            r#"{"target":{"name":"nccl"},"executable":null}"#,
            "warning: not a message",
        ] {
            assert_eq!(executable(other), None);
        }
    }

    #[test]
    fn libraries_are_read_off_what_ldd_prints() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                   \tlibvpx.so.7 => /lib/x86_64-linux-gnu/libvpx.so.7 (0x00007f1c)\n\
                   \tlibgone.so => not found\n";
        let expected = ("libvpx.so.7".to_owned(), PathBuf::from("/lib/x86_64-linux-gnu/libvpx.so.7"));
        assert_eq!(libraries(ldd), [expected]);
    }
}
