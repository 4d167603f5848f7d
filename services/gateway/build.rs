//! Which commit this is built from, for `/health`.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=KINEMESH_GIT_COMMIT");
    if std::env::var_os("KINEMESH_GIT_COMMIT").is_some() {
        // Whoever builds without the history knows better.
        return;
    }
    // The log of HEAD grows with each commit; HEAD itself names a branch.
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", file]);
        if let Some(path) = path.filter(|path| Path::new(path).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) {
        println!("cargo:rustc-env=KINEMESH_GIT_COMMIT={commit}");
    }
}

/// What git answers in a checkout; nothing elsewhere.
fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
